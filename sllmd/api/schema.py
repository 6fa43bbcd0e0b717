"""/openapi.json, made from ``operations`` and the models that requests are read with and answers fit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import sllmd
from sllmd.api import openai
from sllmd.api.operations import OPERATIONS, Operation

_Refs = Mapping[tuple[Any, Any], dict[str, Any]]

_ABOUT = """OpenAI's API as far as sllmd serves it, and `/sllmd/v1` for operators, on every node.

OpenAI's paths work without `/v1`, too. Errors have OpenAI's envelope."""
_HEADERS = {
    "x-request-id": "Of this request; yours, if you sent a harmless one",
    "X-Sllmd-Node": "Name of the node that answers: where the client is connected",
}
_RUN_HEADERS = {
    "X-Sllmd-Ran-On": "Names of the nodes that generated, in order; of a stream, those until its first event",
    "X-Sllmd-Cold": "1: the model had to be loaded for this request",
    "X-Sllmd-Tier": "Where the model was when the request came: device, dram, ssd, peer, remote",
    "Server-Timing": "Milliseconds of queue, load and prefill",
}


@cache
def openapi_json() -> str:
    """The document as text: it never changes while a daemon runs."""
    return json.dumps(openapi_document())


def openapi_document() -> dict[str, Any]:
    """OpenAPI 3.1 of all routes."""
    wanted: list[tuple[type[BaseModel], Any]] = [(openai.ErrorEnvelope, "serialization")]
    for each in OPERATIONS:
        wanted += [(kind, "serialization") for kind in (each.answers, each.streams) if kind is not None]
        wanted += [(each.asks, "validation")] if each.asks is not None else []
    refs, schemas = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for each in OPERATIONS:
        paths.setdefault(each.path, {})[each.method] = _operation(each, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sllmd",
            "version": sllmd.__version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(about: Operation, refs: _Refs) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": about.name, "summary": about.summary}
    if about.description:
        operation["description"] = about.description
    text = {"type": "string"}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {**text, "minLength": 1}}
        for name in re.findall(r"{(\w+)}", about.path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": told, "schema": text}
        for name, told in about.query.items()
    ]
    if parameters:
        operation["parameters"] = parameters
    if about.asks is not None:
        content = {"application/json": {"schema": refs[about.asks, "validation"]}}
        operation["requestBody"] = {"required": about.asks_always, "content": content}
    return operation | {"responses": _responses(about, refs)}


def _event(about: Operation, refs: _Refs) -> dict[str, Any]:
    """A server-sent event of a stream (OpenAPI 3.2, "Sequential Media Types").

    OpenAI's streams end with ``[DONE]``, which is no JSON, so their chunks are told in words.
    """
    assert about.streams is not None
    schema = refs[about.streams, "serialization"]
    data: dict[str, Any] = {"type": "string"}
    if about.answers in _GENERATED:
        data["description"] = (
            f"A chunk ({about.streams.__name__}, usage in the last if asked for), then [DONE]"
        )
    else:
        data |= {"contentMediaType": "application/json", "contentSchema": schema}
    return {"type": "object", "required": ["data"], "properties": {"data": data}}


def _responses(about: Operation, refs: _Refs) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if about.answers is not None:
        content["application/json"] = {"schema": refs[about.answers, "serialization"]}
    if about.streams is not None:
        content["text/event-stream"] = {"schema": _event(about, refs)}
    if not content:
        content["application/json" if about.path.endswith(".json") else "text/plain"] = {}
    headers = _HEADERS | (_RUN_HEADERS if about.answers in _GENERATED else {})
    good = {
        "description": "The answer, or a stream of server-sent events" if about.streams else "The answer",
        "headers": {
            name: {"description": told, "schema": {"type": "string"}} for name, told in headers.items()
        },
        "content": content,
    }
    error = refs[openai.ErrorEnvelope, "serialization"]
    bad = {"description": "An error", "content": {"application/json": {"schema": error}}}
    others = {status: {"description": told, "content": content} for status, told in about.more.items()}
    return {"200": good, **others, "4XX": bad, "5XX": bad}


_GENERATED = (openai.Completion, openai.ChatCompletion)

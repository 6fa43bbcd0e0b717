"""/openapi.json, made from the models that requests are read with and answers fit."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import sllmd
from sllmd.api import openai
from sllmd.roles import status

_Ref = dict[str, str]

_POSTS: tuple[tuple[str, str, type[BaseModel], type[BaseModel]], ...] = (
    ("/v1/completions", "createCompletion", openai.CompletionRequest, openai.Completion),
    ("/v1/chat/completions", "createChatCompletion", openai.ChatRequest, openai.ChatCompletion),
    ("/tokenize", "tokenize", openai.TokenizeRequest, openai.TokenizeResponse),
    ("/detokenize", "detokenize", openai.DetokenizeRequest, openai.DetokenizeResponse),
)
_GETS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("/v1/models", "listModels", openai.ModelList),
    ("/v1/models/{model}", "retrieveModel", openai.ModelObject),
    ("/sllmd/v1/status", "nodeStatus", status.NodeStatus),
    ("/sllmd/v1/cache", "cacheStatus", status.CacheStatus),
    ("/sllmd/v1/members", "clusterMembers", status.ClusterStatus),
    ("/sllmd/v1/nodes", "listNodes", status.NodeRecords),
    ("/sllmd/v1/deployments", "listDeployments", status.DeploymentRecords),
    ("/sllmd/v1/keys", "listKeys", status.KeyRecords),
)


@cache
def openapi_json() -> str:
    """The document as text: it never changes while a daemon runs."""
    return json.dumps(openapi_document())


def openapi_document() -> dict[str, Any]:
    """OpenAPI 3.1 for the public endpoints."""
    wanted: list[tuple[type[BaseModel], Any]] = [(openai.ErrorEnvelope, "serialization")]
    for _, _, asks, answers in _POSTS:
        wanted += [(asks, "validation"), (answers, "serialization")]
    wanted += [(answers, "serialization") for _, _, answers in _GETS]
    refs, schemas = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    error = refs[openai.ErrorEnvelope, "serialization"]
    paths = {
        path: {"post": _post(path, name, refs[asks, "validation"], refs[answers, "serialization"], error)}
        for path, name, asks, answers in _POSTS
    }
    paths |= {
        path: {"get": _get(path, name, refs[answers, "serialization"], error)}
        for path, name, answers in _GETS
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sllmd",
            "version": sllmd.__version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _post(path: str, name: str, asks: _Ref, answers: _Ref, error: _Ref) -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": asks}}}
    return {
        "operationId": name,
        "requestBody": body,
        "responses": _responses(answers, error, streams=path.startswith("/v1/")),
    }


def _get(path: str, name: str, answers: _Ref, error: _Ref) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": name, "responses": _responses(answers, error)}
    if "{model}" in path:
        operation["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        ]
    return operation


def _responses(answers: _Ref, error: _Ref, *, streams: bool = False) -> dict[str, Any]:
    """``streams``: events whose data are the same objects, on request."""
    good: dict[str, Any] = {"application/json": {"schema": answers}}
    if streams:
        good["text/event-stream"] = {}
    bad = {"description": "An error", "content": {"application/json": {"schema": error}}}
    return {"200": {"description": "The answer", "content": good}, "4XX": bad, "5XX": bad}

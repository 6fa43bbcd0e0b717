"""Fuzzed bodies from two specifications: no answer is a 5xx, every answer fits the specification."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sllmd.api.schema import openapi_document
from tests.api.spec import SPEC_FILE
from tests.judges.conftest import run
from tests.live import LiveDaemon

CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance,status_code_conformance"

FOLLOWED = {"/sllmd/v1/events", "/sllmd/v1/logs"}
"""Answers without an end."""


def own_specification() -> dict[str, Any]:
    """Ours, without an operator's orders: they would drain the node and lock the fuzzer out (keys).

    It also tries methods that a path does not have, so a path that takes orders is left out whole.
    """
    document = json.loads(json.dumps(openapi_document()))
    document["paths"] = {
        path: methods
        for path, methods in document["paths"].items()
        if not path.startswith("/sllmd/v1") or (set(methods) == {"get"} and path not in FOLLOWED)
    }
    for name in ("CompletionRequest", "ChatRequest", "TokenizeRequest", "DetokenizeRequest"):
        document["components"]["schemas"][name]["properties"]["model"] = {"const": "tiny"}
    return document


def openai_specification() -> dict[str, Any]:
    """Theirs, of models that are there; a streamed answer is not JSON, so bodies do not ask for one."""
    document = yaml.safe_load(SPEC_FILE.read_text())
    schemas = document["components"]["schemas"]
    properties = schemas["CreateCompletionRequest"]["properties"]
    properties["model"] = {"type": "string", "enum": ["tiny"]}
    properties["stream"] = {"type": "boolean", "enum": [False]}
    chat = schemas["CreateChatCompletionRequest"]["allOf"][1]["properties"]
    chat["model"] = {"type": "string", "enum": ["tiny"]}
    chat["stream"] = {"type": "boolean", "enum": [False]}
    return document


@pytest.mark.slow
@pytest.mark.parametrize(
    ("specification", "prefix"), [(own_specification, ""), (openai_specification, "/v1")]
)
def test_fuzzed_bodies(
    real: LiveDaemon, tmp_path: Path, specification: Callable[[], dict[str, Any]], prefix: str
) -> None:
    path = tmp_path / "specification.json"
    path.write_text(json.dumps(specification()))
    served = 'sllmd_requests_total{code="200",endpoint="/v1/completions",model="tiny"}'
    before = count(real, served)
    run(
        *(Path(sys.executable).parent / "schemathesis", "run", path, "--url", real.url + prefix),
        *(
            "--max-examples",
            "15",
            "--seed",
            "1",
            "--no-color",
            "--request-timeout",
            "120",
            "--checks",
            CHECKS,
        ),
        cwd=tmp_path,
    )
    assert count(real, served) > before, "no body was good enough to be served"
    assert not real.said("request failed")


def count(daemon: LiveDaemon, sample: str) -> float:
    """A counter's value."""
    lines = daemon.ask("/metrics").raw.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))

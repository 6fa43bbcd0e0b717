"""Fuzzed bodies from two specifications: no answer is a 5xx, every answer fits the specification."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sllmd.api.schema import openapi_document
from tests.api.spec import SPEC_FILE

CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance,status_code_conformance"


def own_specification() -> dict:
    document = json.loads(json.dumps(openapi_document()))
    for name in ("CompletionRequest", "ChatRequest", "TokenizeRequest", "DetokenizeRequest"):
        document["components"]["schemas"][name]["properties"]["model"] = {"const": "letters"}
    return document


def openai_specification() -> dict:
    """Theirs, of models that are there; a streamed answer is not JSON, so bodies do not ask for one."""
    document = yaml.safe_load(SPEC_FILE.read_text())
    schemas = document["components"]["schemas"]
    properties = schemas["CreateCompletionRequest"]["properties"]
    properties["model"] = {"type": "string", "enum": ["letters"]}
    properties["stream"] = {"type": "boolean", "enum": [False]}
    chat = schemas["CreateChatCompletionRequest"]["allOf"][1]["properties"]
    chat["model"] = {"type": "string", "enum": ["letters"]}
    chat["stream"] = {"type": "boolean", "enum": [False]}
    return document


@pytest.mark.slow
@pytest.mark.parametrize(
    ("specification", "prefix"), [(own_specification, ""), (openai_specification, "/v1")]
)
async def test_fuzzed_bodies(live, tmp_path, specification, prefix):
    path = tmp_path / "specification.json"
    path.write_text(json.dumps(specification()))
    command = [
        *(str(Path(sys.executable).parent / "schemathesis"), "run", str(path), "--url", live.url + prefix),
        *("--max-examples", "15", "--seed", "1", "--no-color", "--checks", CHECKS),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()[-8000:]
    good = await (await live.get("/metrics")).text()
    assert 'sllmd_requests_total{code="200",endpoint="/v1/completions",model="letters"}' in good

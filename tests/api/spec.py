"""OpenAI's specification as a judge of bodies."""

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

SPEC_FILE = Path(__file__).parent.parent / "data" / "openai-openapi-trimmed.yaml"


def check(body: Any, schema: str) -> None:
    """Raise ValidationError when ``body`` is not what the specification calls ``schema``."""
    validator = jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{schema}", "components": _components()}
    )
    validator.validate(body)


@cache
def _components() -> dict[str, Any]:
    return _as_json_schema(yaml.safe_load(SPEC_FILE.read_text())["components"])


def _as_json_schema(node: Any) -> Any:
    """``nullable`` is OpenAPI 3.0's; JSON Schema says it with a type."""
    if isinstance(node, list):
        return [_as_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: _as_json_schema(value) for key, value in node.items() if key != "nullable"}
    return {"anyOf": [found, {"type": "null"}]} if node.get("nullable") is True else found

"""Types of request fields, and what is wrong with a value said in one sentence. Pure."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from sllmd.core.errors import ConfigError, InvalidRequest
from sllmd.core.units import parse_duration_seconds


def wrong_type(expected: str) -> PydanticCustomError:
    """A value that is not ``expected`` ("a string or an array of strings")."""
    return PydanticCustomError("invalid_type", "must be {expected}", {"expected": expected})


def wrong_value(reason: str) -> PydanticCustomError:
    """A value of the right type that will not do."""
    return PydanticCustomError("invalid_value", "{reason}", {"reason": reason})


def _integral(value: Any) -> Any:
    """JSON does not tell 16.0 from 16."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and abs(value) > INT_MAX:
        raise wrong_value("is out of range")
    return value


def _stop_strings(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise wrong_type("a string or an array of strings")
    if len(stops) > STOPS_MAX:
        raise wrong_value(f"may hold at most {STOPS_MAX} strings, not {len(stops)}")
    if "" in stops:
        raise wrong_value("must not hold an empty string")
    return stops


def _prompts(value: Any) -> Any:
    """One of the four forms of a prompt as a list of prompts: each a string or a list of ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise wrong_type(_PROMPT)
    if not value:
        raise wrong_value("must not be an empty array")
    if _are_token_ids(value):
        return [value]
    for prompt in value:
        if isinstance(prompt, str):
            continue
        if prompt == []:
            raise wrong_value("must not hold an empty array of token ids")
        if not isinstance(prompt, list) or not _are_token_ids(prompt):
            raise wrong_type(_PROMPT)
    return value


def _are_token_ids(value: list[Any]) -> bool:
    return all(type(item) is int for item in value)


def _content(value: Any) -> Any:
    if isinstance(value, str) or value is None:
        return value
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise wrong_type("a string or an array of content parts")
    return value


def _keep_alive_seconds(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong_type('a duration such as "5m" or a number of seconds')
    try:
        seconds = parse_duration_seconds(value)
    except (ConfigError, OverflowError) as error:
        raise wrong_value(f"is not a duration: {str(error)[:200]}") from error
    if KEEP_ALIVE_SECONDS_MAX < seconds < math.inf:
        raise wrong_value("is longer than ten years; -1 is for ever")
    return seconds


def _logit_bias(value: Any) -> Any:
    if not isinstance(value, dict):
        raise wrong_type("an object of token ids and numbers")
    for token_id, bias in value.items():
        if not token_id.isascii() or not token_id.isdecimal():
            raise wrong_value(f"has a key that is not a token id: `{token_id[:20]}`")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise wrong_type("an object of token ids and numbers")
        if not -LOGIT_BIAS_MAX <= bias <= LOGIT_BIAS_MAX:
            raise wrong_value(
                f"has a bias outside of -{LOGIT_BIAS_MAX} to {LOGIT_BIAS_MAX}: {str(bias)[:20]}"
            )
    return {int(token_id): float(bias) for token_id, bias in value.items()}


STOPS_MAX = 4
"""As in OpenAI's specification."""
LOGIT_BIAS_MAX = 100
KEEP_ALIVE_SECONDS_MAX = 10 * 365 * 86400.0
INT_MAX = 10**100
"""More is no number that anybody means, and Python refuses to write those of thousands of digits."""
_PROMPT = "a string, an array of strings, an array of token ids or an array of arrays of token ids"
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"type": "string"}},
        {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        {
            "type": "array",
            "minItems": 1,
            "items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        },
    ]
}
_STOP_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "maxItems": STOPS_MAX, "items": {"type": "string", "minLength": 1}},
    ]
}
_BIAS_SCHEMA = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]+$"},
    "additionalProperties": {"type": "number", "minimum": -LOGIT_BIAS_MAX, "maximum": LOGIT_BIAS_MAX},
}
_KEEP_ALIVE_SCHEMA = {
    "anyOf": [{"type": "string", "pattern": r"^(-1|(\d+(\.\d+)?(ms|s|m|h|d))+)$"}, {"type": "number"}]
}

Int = Annotated[int, BeforeValidator(_integral)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Stops = Annotated[list[str], BeforeValidator(_stop_strings), WithJsonSchema(_STOP_SCHEMA)]
Content = Annotated[str | list[dict[str, Any]] | None, BeforeValidator(_content)]
Prompts = Annotated[list[str | list[int]], BeforeValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
LogitBias = Annotated[dict[int, float], BeforeValidator(_logit_bias), WithJsonSchema(_BIAS_SCHEMA)]
KeepAlive = Annotated[float, BeforeValidator(_keep_alive_seconds), WithJsonSchema(_KEEP_ALIVE_SCHEMA)]

_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_BOUNDS = {
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "must hold at least {min_length}",
    "too_long": "must hold at most {max_length}",
    "string_too_short": "must not be empty",
}


def first_error(error: ValidationError) -> InvalidRequest:
    """The first of a validation's errors as one sentence that names its field."""
    detail = error.errors(include_url=False)[0]
    param = _path(detail["loc"])
    kind = detail["type"]
    if kind == "missing":
        return InvalidRequest(f"`{param}` is required.", param=param, code="missing_required_parameter")
    code = "invalid_type" if kind in _EXPECTED or kind == "invalid_type" else "invalid_value"
    return InvalidRequest(f"`{param}` {_complaint(detail)}.", param=param, code=code)


def _complaint(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _EXPECTED:
        return f"must be {_EXPECTED[kind]}"
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**context)
    if kind == "literal_error":
        return f"must be {context['expected']}"
    if kind in ("invalid_type", "invalid_value"):
        return detail["msg"]
    return f"is not valid: {detail['msg'][:1].lower()}{detail['msg'][1:]}"


def _path(location: tuple[int | str, ...]) -> str:
    """``messages[0].content``; parts that pydantic adds for unions are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier():
            path += f".{part}" if path else part
    return path

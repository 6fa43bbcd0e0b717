"""From a body's bytes to a request that can be served, or an error that names what to change. Pure.

A null is an absent field. A field that is known and not served is refused by name unless its value asks for
nothing. A field that nobody knows is ignored and named in a header, or refused when ``strict_params`` is set.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sllmd.api.fields import first_error
from sllmd.api.openai import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from sllmd.api.settings import ApiSettings
from sllmd.core.errors import InvalidRequest, UnsupportedParameter

_Request = TypeVar("_Request", bound=BaseModel)
_SEPARATOR = re.compile(rb'[",\[{]')
_STRING_PIECE = re.compile(rb'(?:[^"\\]++|\\.){1,16384}+', re.DOTALL)
_TOO_DEEP = "it is nested too deeply"

HINTS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "include_obfuscation",
    }
)
"""Known fields that ask for nothing a client could miss: they are ignored without a word."""

UNSERVED: Mapping[str, tuple[Any, ...]] = {
    # OpenAI's
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM's and others'
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "format": ("",),
    "grammar": ("",),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "priority": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
"""Known fields that are not served -> their values that ask for nothing."""


def parse_json(raw: bytes, settings: ApiSettings) -> dict[str, Any]:
    """The JSON object in ``raw``. Raises InvalidRequest, also for what JSON leaves open: NaN, twice the same
    key, half a surrogate pair, nesting without end, more values than anybody means.
    """
    if _separators(raw, settings.json_elements_max) > settings.json_elements_max:
        raise InvalidRequest(
            f"The body holds more than {settings.json_elements_max} values.",
            code="invalid_json",
            hint="raise [api] json_elements_max to allow it",
        )
    try:
        text = raw.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique_keys)
        if isinstance(value, dict | list) and text.count("[") + text.count("{") > settings.json_depth_max:
            _check_depth(value, settings.json_depth_max)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8 (byte {error.start}).", code="invalid_json") from error
    except UnicodeEncodeError as error:
        raise InvalidRequest("The body holds half a surrogate pair.", code="invalid_json") from error
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    except RecursionError as error:
        raise InvalidRequest(f"The body is not valid JSON: {_TOO_DEEP}.", code="invalid_json") from error
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_type")
    return value


def parse_completion(body: Mapping[str, Any], settings: ApiSettings) -> CompletionRequest:
    """A request for /v1/completions. Raises InvalidRequest and UnsupportedParameter."""
    request = _validated(CompletionRequest, body)
    if request.best_of is not None and request.best_of > request.n:
        raise UnsupportedParameter(
            "`best_of` above `n` is not supported.", param="best_of", hint="ask for n texts and choose"
        )
    if request.best_of is not None and request.best_of < request.n:
        raise InvalidRequest("`best_of` must not be less than `n`.", param="best_of")
    prompts = len(request.prompt) if request.prompt is not None else 1
    _check_choices(prompts, request.n, settings)
    _check_generating(request, body, settings)
    return request


def parse_chat(body: Mapping[str, Any], settings: ApiSettings) -> ChatRequest:
    """A request for /v1/chat/completions. Raises InvalidRequest and UnsupportedParameter."""
    request = _validated(ChatRequest, body)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs` to be true.", param="top_logprobs")
    _check_choices(1, request.n, settings)
    _check_generating(request, body, settings)
    return request


def parse_tokenize(body: Mapping[str, Any], settings: ApiSettings) -> TokenizeRequest:
    """A request for /tokenize. Raises InvalidRequest and UnsupportedParameter."""
    request = _validated(TokenizeRequest, body)
    _check_fields(request, body, settings)
    return request


def parse_detokenize(body: Mapping[str, Any], settings: ApiSettings) -> DetokenizeRequest:
    """A request for /detokenize. Raises InvalidRequest and UnsupportedParameter."""
    request = _validated(DetokenizeRequest, body)
    _check_fields(request, body, settings)
    return request


def parse_plain(kind: type[_Request], body: Mapping[str, Any]) -> _Request:
    """An order of an operator."""
    return _validated(kind, body)


def ignored_fields(request: BaseModel) -> list[str]:
    """Fields of a request that nobody knows."""
    names = {*(request.model_extra or {})}
    options = getattr(request, "stream_options", None)
    if options is not None:
        names |= {f"stream_options.{name}" for name in (options.model_extra or {}).keys() - HINTS}
    return sorted(names - HINTS - UNSERVED.keys())


def _validated(kind: type[_Request], body: Mapping[str, Any]) -> _Request:
    given = {key: value for key, value in body.items() if value is not None}
    options = given.get("stream_options")
    if isinstance(options, dict):
        given["stream_options"] = {key: value for key, value in options.items() if value is not None}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise first_error(error) from None


def _check_generating(
    request: CompletionRequest | ChatRequest, body: Mapping[str, Any], settings: ApiSettings
) -> None:
    """What both generating endpoints refuse."""
    _check_fields(request, body, settings)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("`stream_options` needs `stream` to be true.", param="stream_options")
    if any(len(stop) > settings.stop_characters_max for stop in request.stop):
        raise InvalidRequest(
            f"`stop` holds a string of more than {settings.stop_characters_max} characters.", param="stop"
        )


def _check_fields(request: BaseModel, body: Mapping[str, Any], settings: ApiSettings) -> None:
    """Refuse fields that are not served, and unknown ones when they are not to be ignored."""
    own_fields = type(request).model_fields
    for name, neutral_values in UNSERVED.items():
        value = body.get(name)
        if name not in own_fields and value is not None and value not in neutral_values:
            raise UnsupportedParameter(f"`{name}` is not supported by this server.", param=name)
    ignored = ignored_fields(request)
    if ignored and settings.strict_params:
        raise InvalidRequest(f"`{ignored[0]}` is not known.", param=ignored[0], code="unknown_parameter")


def _check_choices(prompts: int, n: int, settings: ApiSettings) -> None:
    if prompts * n <= settings.choices_max:
        return
    param = "n" if n > 1 else "prompt"
    raise InvalidRequest(
        f"{prompts} prompts with n={n} are more than {settings.choices_max} choices.",
        param=param,
        hint="split the request",
    )


def _separators(raw: bytes, enough: int) -> int:
    """Commas and opening brackets outside of strings, which are at least the values; stops above ``enough``.

    Counted before anything is made of them. Never more than a piece of a string at a time, so that in a
    thread it does not hold up the others.
    """
    count = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if count <= enough:
        return count
    count, place = 0, 0
    while count <= enough and (found := _SEPARATOR.search(raw, place)):
        place = found.end()
        if found[0] != b'"':
            count += 1
            continue
        while piece := _STRING_PIECE.match(raw, place):
            place = piece.end()
        place += 1  # the closing quote
    return count


def _check_depth(value: Any, depth_max: int) -> None:
    """Raise ValueError for nesting deeper than ``depth_max``; level by level, without recursion."""
    level = [value]
    for _ in range(depth_max):
        level = [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _children(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key `{twice[:64]}` occurs twice")
    return value

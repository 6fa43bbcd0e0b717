import pytest

from sllmd.api.parsing import (
    ignored_fields,
    parse_chat,
    parse_completion,
    parse_detokenize,
    parse_json,
    parse_tokenize,
)
from sllmd.api.settings import ApiSettings
from sllmd.core.errors import CallerError, InvalidRequest, UnsupportedParameter

SETTINGS = ApiSettings()
HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'"x"', "must be a JSON object"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not"),
        (b'{"a": 1, "a": 2}', "`a` occurs twice"),
        (b'{"b": {"a": 1, "a": 2}}', "`a` occurs twice"),
        (b'{"a": "\xff"}', r"not UTF-8 \(byte 7\)"),
        (b'{"a": "\\ud800"}', "half a surrogate pair"),
        (b'{"\\udc00": 1}', "half a surrogate pair"),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b'{"b":' * 100_000 + b"1" + b"}" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"\x1f\x8b\x08\x00", "not UTF-8"),
    ],
)
def test_bytes_that_are_no_request(raw, said):
    with pytest.raises(InvalidRequest, match=said):
        parse_json(raw, SETTINGS)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'{"a": "\\ud83d\\ude42"}', {"a": "🙂"}),
        (b'{"a": [[[1]]], "b": "[[[[[[{{{{"}', {"a": [[[1]]], "b": "[[[[[[{{{{"}),
        (b'{"a": "' + b"[" * 500 + b'"}', {"a": "[" * 500}),
    ],
)
def test_bytes_that_are_one(raw, value):
    assert parse_json(raw, SETTINGS) == value


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [
        ("hi", ["hi"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [1]], ["a", [1]]),
        (None, None),
    ],
)
def test_forms_of_a_prompt(prompt, parsed):
    assert parse_completion({"model": "m", "prompt": prompt}, SETTINGS).prompt == parsed


COMPLETION_ERRORS = [
    ({}, "model", "missing_required_parameter", "`model` is required."),
    ({"model": None}, "model", "missing_required_parameter", "`model` is required."),
    ({"model": 3}, "model", "invalid_type", "`model` must be a string."),
    ({"model": ""}, "model", "invalid_value", "`model` must not be empty."),
    ({"prompt": []}, "prompt", "invalid_value", "`prompt` must not be an empty array."),
    ({"prompt": [[]]}, "prompt", "invalid_value", "`prompt` must not hold an empty array of token ids."),
    ({"prompt": 5}, "prompt", "invalid_type", "`prompt` must be a string, an array"),
    ({"prompt": [1, "a"]}, "prompt", "invalid_type", "`prompt` must be a string, an array"),
    ({"prompt": [1.5]}, "prompt", "invalid_type", "`prompt` must be a string, an array"),
    ({"prompt": [True]}, "prompt", "invalid_type", "`prompt` must be a string, an array"),
    ({"prompt": {"a": 1}}, "prompt", "invalid_type", "`prompt` must be a string, an array"),
    ({"temperature": "hot"}, "temperature", "invalid_type", "`temperature` must be a number."),
    ({"temperature": 2.5}, "temperature", "invalid_value", "`temperature` must be at most 2."),
    ({"temperature": -1}, "temperature", "invalid_value", "`temperature` must be at least 0."),
    ({"temperature": float("inf")}, "temperature", "invalid_type", "`temperature` must be a finite number."),
    ({"temperature": True}, "temperature", "invalid_type", "`temperature` must be a number."),
    ({"top_p": 1.1}, "top_p", "invalid_value", "`top_p` must be at most 1."),
    ({"max_tokens": "5"}, "max_tokens", "invalid_type", "`max_tokens` must be an integer."),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_type", "`max_tokens` must be an integer."),
    ({"max_tokens": -1}, "max_tokens", "invalid_value", "`max_tokens` must be at least 0."),
    ({"n": 0}, "n", "invalid_value", "`n` must be at least 1."),
    ({"n": 129}, "n", "invalid_value", "are more than 128 choices"),
    ({"n": 10**30}, "n", "invalid_value", "are more than 128 choices"),
    ({"prompt": ["a"] * 129}, "prompt", "invalid_value", "are more than 128 choices"),
    ({"prompt": ["a"] * 65, "n": 2}, "n", "invalid_value", "are more than 128 choices"),
    ({"stream": "yes"}, "stream", "invalid_type", "`stream` must be true or false."),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value", "needs `stream`"),
    ({"stream": True, "stream_options": 1}, "stream_options", "invalid_type", "must be an object"),
    (
        {"stream": True, "stream_options": {"include_usage": 1}},
        *("stream_options.include_usage", "invalid_type", "must be true or false"),
    ),
    ({"stop": ["a"] * 5}, "stop", "invalid_value", "at most 4 strings, not 5"),
    ({"stop": ""}, "stop", "invalid_value", "must not hold an empty string"),
    ({"stop": ["a", ""]}, "stop", "invalid_value", "must not hold an empty string"),
    ({"stop": 3}, "stop", "invalid_type", "a string or an array of strings"),
    ({"stop": "x" * 1025}, "stop", "invalid_value", "more than 1024 characters"),
    ({"logprobs": 21}, "logprobs", "invalid_value", "at most 20"),
    ({"logprobs": True}, "logprobs", "invalid_type", "an integer"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value", "not a token id: `a`"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value", "not a token id: `-1`"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value", "outside of -100 to 100: 101"),
    ({"logit_bias": {"5": "x"}}, "logit_bias", "invalid_type", "token ids and numbers"),
    ({"logit_bias": [1]}, "logit_bias", "invalid_type", "token ids and numbers"),
    ({"best_of": 3}, "best_of", "unsupported_parameter", "`best_of` above `n`"),
    ({"n": 3, "best_of": 2}, "best_of", "invalid_value", "must not be less than `n`"),
    ({"suffix": "end"}, "suffix", "unsupported_parameter", "`suffix` is not supported"),
    ({"seed": "x"}, "seed", "invalid_type", "an integer"),
    ({"keep_alive": "soon"}, "keep_alive", "invalid_value", "`soon` is not a duration"),
    ({"keep_alive": []}, "keep_alive", "invalid_type", "a duration"),
    ({"min_tokens": 3}, "min_tokens", "unsupported_parameter", "`min_tokens` is not supported"),
    ({"guided_json": {}}, "guided_json", "unsupported_parameter", "not supported"),
    ({"repetition_penalty": 5e-324}, "repetition_penalty", "invalid_value", "at least 0.01"),
]


@pytest.mark.parametrize(("change", "param", "code", "said"), COMPLETION_ERRORS)
def test_completion_errors_name_the_field_in_one_sentence(change, param, code, said):
    body = {"model": "m", "prompt": "hi"} | change if change else {}
    with pytest.raises(CallerError) as caught:
        parse_completion(body, SETTINGS)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert said in str(caught.value)
    assert "pydantic" not in str(caught.value)
    assert "\n" not in str(caught.value)


HUGE = 10**400


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"keep_alive": HUGE}, "keep_alive"),
        ({"keep_alive": 1e300}, "keep_alive"),
        ({"keep_alive": "99999999d"}, "keep_alive"),
        ({"logit_bias": {"1": HUGE}}, "logit_bias"),
        ({"temperature": HUGE}, "temperature"),
        ({"seed": HUGE}, "seed"),
        ({"top_k": HUGE}, "top_k"),
        ({"max_tokens": HUGE}, "max_tokens"),
        ({"n": HUGE}, "n"),
    ],
)
def test_numbers_of_hundreds_of_digits_are_the_callers_fault(change, param):
    with pytest.raises(InvalidRequest) as caught:
        parse_completion({"model": "m", "prompt": "x"} | change, SETTINGS)
    assert caught.value.param == param
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "name", ["tools", "chat_template", "continue_final_message", "truncate_prompt_tokens"]
)
def test_the_tokenizers_endpoints_refuse_by_name_too(name):
    with pytest.raises(UnsupportedParameter, match=f"`{name}`"):
        parse_tokenize({"model": "m", "prompt": "x", name: "something"}, SETTINGS)
    with pytest.raises(UnsupportedParameter, match=f"`{name}`"):
        parse_detokenize({"model": "m", "tokens": [1], name: "something"}, SETTINGS)


def test_unknown_fields_of_stream_options_are_named_or_refused():
    options = {"include_usage": True, "include_obfuscation": False, "zeta": 1}
    body = {"model": "m", "prompt": "x", "stream": True, "stream_options": options}
    assert ignored_fields(parse_completion(body, SETTINGS)) == ["stream_options.zeta"]
    with pytest.raises(InvalidRequest, match=r"stream_options\.zeta"):
        parse_completion(body, ApiSettings(strict_params=True))
    with pytest.raises(InvalidRequest, match="`zeta` is not known"):
        parse_tokenize({"model": "m", "prompt": "x", "zeta": 1}, ApiSettings(strict_params=True))


FEW = ApiSettings(json_elements_max=10)


@pytest.mark.parametrize(
    ("raw", "good"),
    [
        (b'{"a": [1,2,3,4,5,6,7,8,9]}', True),
        (b'{"a": [1,2,3,4,5,6,7,8,9,10]}', False),
        (b'{"a": [[],[],[],[],[],[]]}', False),
        (b'{"a": [{},{},{},{},{},{}]}', False),
        (b'{"a": "' + b"[,{" * 50_000 + b'"}', True),
        (b'{"a": "\\\\", "b": "' + b'\\",' * 100 + b'"}', True),
        (b'{"a": "' + b"x" * 40_000 + b'", "b": ["' + b'","' * 10 + b'"]}', False),
        (b'{"a": "' + b"," * 100, None),
        (b'{"a": "\\\\' + b"," * 100 + b"\\", None),
    ],
)
def test_values_are_counted_and_text_is_not(raw, good):
    if good:
        assert parse_json(raw, FEW)
        return
    with pytest.raises(InvalidRequest) as caught:
        parse_json(raw, FEW)
    assert ("more than 10 values" in str(caught.value)) is (good is False)


def test_a_conversation_has_a_length():
    with pytest.raises(InvalidRequest, match="`messages` must hold at most 10000"):
        parse_chat({"model": "m", "messages": HI * 10_001}, SETTINGS)


CHAT_ERRORS = [
    ({"messages": None}, "messages", "missing_required_parameter"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_type"),
    ({"messages": ["hi"]}, "messages[0]", "invalid_type"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "invalid_type"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"logprobs": 3}, "logprobs", "invalid_type"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
    ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    ({"functions": [{}]}, "functions", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        "response_format",
        "unsupported_parameter",
    ),
    ({"audio": {"voice": "alloy"}}, "audio", "unsupported_parameter"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ({"prediction": {}}, "prediction", "unsupported_parameter"),
    ({"store": True}, "store", "unsupported_parameter"),
    ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
    ({"service_tier": "flex"}, "service_tier", "unsupported_parameter"),
]


@pytest.mark.parametrize(("change", "param", "code"), CHAT_ERRORS)
def test_chat_errors(change, param, code):
    with pytest.raises(CallerError) as caught:
        parse_chat({"model": "m", "messages": HI} | change, SETTINGS)
    assert (caught.value.param, caught.value.code) == (param, code)


def test_values_that_ask_for_nothing_are_no_reason_to_refuse():
    body = {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "store": False,
        "audio": None,
        "parallel_tool_calls": True,
        "service_tier": "auto",
        "metadata": {"a": "b"},
        "prediction": None,
        "best_of": 1,
    }
    request = parse_chat({"model": "m", "messages": HI} | body, SETTINGS)
    assert ignored_fields(request) == ["best_of"]


def test_null_is_absent():
    names = ["stop", "n", "temperature", "seed", "stream", "max_tokens", "logit_bias", "user"]
    request = parse_completion({"model": "m", "prompt": "x"} | dict.fromkeys(names), SETTINGS)
    assert request == parse_completion({"model": "m", "prompt": "x"}, SETTINGS)
    chat = {"model": "m", "messages": HI, "stream": True, "stream_options": {"include_usage": None}}
    assert parse_chat(chat, SETTINGS).stream_options is not None


def test_unknown_fields_are_named_or_refused():
    body = {"model": "m", "prompt": "x", "zeta": 1, "alpha": 2}
    assert ignored_fields(parse_completion(body, SETTINGS)) == ["alpha", "zeta"]
    with pytest.raises(InvalidRequest) as caught:
        parse_completion(body, ApiSettings(strict_params=True))
    assert caught.value.code == "unknown_parameter"
    assert caught.value.param == "alpha"


def test_whole_floats_are_integers_and_integers_are_numbers():
    request = parse_completion({"model": "m", "prompt": "x", "max_tokens": 4.0, "temperature": 1}, SETTINGS)
    assert request.max_tokens == 4
    assert request.temperature == 1.0


@pytest.mark.parametrize(("said", "seconds"), [("5m", 300), (0, 0), (-1, float("inf")), ("1.5", 1.5)])
def test_keep_alive_is_ollamas(said, seconds):
    assert parse_completion({"model": "m", "keep_alive": said}, SETTINGS).keep_alive == seconds


def test_unserved_fields_are_all_refused_with_their_name():
    from sllmd.api.parsing import UNSERVED

    for name in UNSERVED:
        with pytest.raises(UnsupportedParameter, match=f"`{name}`"):
            parse_completion({"model": "m", name: "something"}, SETTINGS)

import io
import re

import pytest

from tests.api.spec import check


async def test_a_completion_has_every_key(live):
    body = await live.complete("letters", "hi", max_tokens=4)
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"}
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    [choice] = body["choices"]
    assert set(choice) == {"text", "index", "logprobs", "finish_reason"}
    assert choice["logprobs"] is None
    assert choice["finish_reason"] == "length"
    assert len(choice["text"]) == 4
    assert {key: body["usage"][key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")} == {
        "prompt_tokens": 2,
        "completion_tokens": 4,
        "total_tokens": 6,
    }
    check(body, "CreateCompletionResponse")


async def test_sixteen_tokens_when_nothing_is_said(live):
    assert (await live.complete())["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("prompt", "prompt_tokens", "choices"),
    [
        ("hi", 2, 1),
        (["hi", "you"], 5, 2),
        ([71, 72], 2, 1),
        ([[71, 72], [73]], 3, 2),
        ("", 1, 1),
        (None, 1, 1),
        (["", "a"], 2, 2),
        ("é🙂", 6, 1),
    ],
)
async def test_every_form_of_a_prompt(live, prompt, prompt_tokens, choices):
    body = await live.complete(prompt=prompt, max_tokens=2)
    assert body["usage"]["prompt_tokens"] == prompt_tokens
    assert [choice["index"] for choice in body["choices"]] == list(range(choices))


async def test_text_and_its_ids_are_the_same_prompt(live):
    by_text = await live.complete(prompt="hi", max_tokens=6, seed=1)
    by_ids = await live.complete(prompt=[71, 72], max_tokens=6, seed=1)
    assert by_text["choices"] == by_ids["choices"]


async def test_prompts_times_n_are_indexed_by_prompt_first(live):
    body = await live.complete(prompt=["a", "b"], n=3, max_tokens=8, seed=7)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3, 4, 5]
    assert body["usage"]["prompt_tokens"] == 2
    assert body["usage"]["completion_tokens"] == 48
    alone = await live.complete(prompt="b", n=3, max_tokens=8, seed=7)
    assert [c["text"] for c in body["choices"][3:]] == [c["text"] for c in alone["choices"]]
    assert len({choice["text"] for choice in body["choices"]}) == 6
    check(body, "CreateCompletionResponse")


async def test_a_seed_repeats_and_its_absence_does_not(live):
    one, same = [(await live.complete(seed=5))["choices"][0]["text"] for _ in range(2)]
    assert one == same
    texts = {(await live.complete())["choices"][0]["text"] for _ in range(3)}
    assert len(texts) > 1


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), 10**30])
async def test_any_integer_is_a_seed(live, seed):
    assert (await live.complete(seed=seed, max_tokens=2))["choices"]


async def test_the_context_is_what_the_node_allows(serve):
    async with serve(engine={"context_tokens_max": 64}) as live:
        listed = await (await live.get("/v1/models/letters")).json()
        assert listed["max_model_len"] == 64
        for fields in ({"prompt": "x" * 100}, {"prompt": "x", "max_tokens": 100}, {"prompt": [70] * 100}):
            response = await live.post("/v1/completions", {"model": "letters", **fields})
            error = (await response.json())["error"]
            assert (response.status, error["code"]) == (400, "context_length_exceeded")
            assert "maximum context length is 64 tokens" in error["message"]
        whole = await live.complete(prompt="x", max_tokens=63)
        assert whole["usage"]["completion_tokens"] == 63


async def test_a_stop_token_ends_and_is_counted(live):
    body = await live.complete("stops", "hi", max_tokens=50)
    assert body["choices"][0]["finish_reason"] == "stop"
    assert len(body["choices"][0]["text"]) == 5
    assert body["usage"]["completion_tokens"] == 6
    ignored = await live.complete("stops", "hi", max_tokens=20, ignore_eos=True)
    assert ignored["choices"][0]["finish_reason"] == "length"


async def test_a_stop_string_is_cut_off(live):
    text = (await live.complete(seed=3, max_tokens=30))["choices"][0]["text"]
    stop = text[10:12]
    body = await live.complete(seed=3, max_tokens=30, stop=[stop, "never seen"])
    assert body["choices"][0]["text"] == text[: text.index(stop)]
    assert body["choices"][0]["finish_reason"] == "stop"


async def test_no_stop_is_no_stop(live):
    assert (await live.complete(stop=None))["choices"][0]["finish_reason"] == "length"
    assert (await live.complete(stop=[]))["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("wanted", [0, 1, 5, 20])
async def test_logprobs_run_in_step(live, wanted):
    body = await live.complete(max_tokens=6, logprobs=wanted, seed=1)
    [choice] = body["choices"]
    logprobs = choice["logprobs"]
    assert {len(logprobs[name]) for name in logprobs} == {6}
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert logprobs["text_offset"] == list(range(6))
    for token, logprob, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == logprob
        assert wanted <= len(top) <= wanted + 1
    check(body, "CreateCompletionResponse")


async def test_echo_repeats_the_prompt(live):
    body = await live.complete(prompt=["é one", "two"], echo=True, max_tokens=3, n=2)
    texts = [choice["text"] for choice in body["choices"]]
    assert [text[:-3] for text in texts] == ["é one", "é one", "two", "two"]
    assert body["usage"]["prompt_tokens"] == 9


async def test_scoring_a_prompt_without_generating(live):
    body = await live.complete(prompt="né", echo=True, max_tokens=0, logprobs=1)
    [choice] = body["choices"]
    assert choice["text"] == "né"
    assert choice["finish_reason"] == "length"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["n", "bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    assert logprobs["text_offset"] == [0, 1, 1]
    assert body["usage"]["completion_tokens"] == 0


async def test_echoed_logprobs_cover_prompt_and_completion(live):
    body = await live.complete(prompt="héy", echo=True, max_tokens=2, logprobs=0, seed=1)
    [choice] = body["choices"]
    logprobs = choice["logprobs"]
    assert {len(logprobs[name]) for name in logprobs} == {6}
    assert logprobs["text_offset"] == [0, 1, 1, 2, 3, 4]
    assert choice["text"][3:] == "".join(logprobs["tokens"][4:])


async def test_nothing_to_generate_is_legal(live):
    body = await live.complete(max_tokens=0)
    assert body["choices"][0]["text"] == ""
    assert body["choices"][0]["finish_reason"] == "length"


async def test_invalid_utf8_of_a_model_becomes_replacement_characters(live):
    body = await live.complete("tiny", max_tokens=40, seed=2)
    assert "\ufffd" in body["choices"][0]["text"]


REFUSED = [
    ({"model": "lettres"}, 404, "model_not_found", "model"),
    ({"prompt": [99999]}, 400, "invalid_value", "prompt"),
    ({"prompt": [-1]}, 400, "invalid_value", "prompt"),
    ({"prompt": [[1], [10**30]]}, 400, "invalid_value", "prompt"),
    ({"prompt": "x" * 3000}, 400, "context_length_exceeded", "prompt"),
    ({"prompt": [5] * 2048}, 400, "context_length_exceeded", "prompt"),
    ({"prompt": "hi", "max_tokens": 2047}, 400, "context_length_exceeded", "prompt"),
    ({"prompt": "hi", "max_tokens": 10**40}, 400, "context_length_exceeded", "prompt"),
    ({"logit_bias": {"99999": 1}}, 400, "invalid_value", "logit_bias"),
    ({"stop_token_ids": [99999]}, 400, "invalid_value", "stop_token_ids"),
    ({"suffix": "end"}, 400, "unsupported_parameter", "suffix"),
]


@pytest.mark.parametrize(("change", "status", "code", "param"), REFUSED)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusals_are_real_statuses_also_for_streams(live, change, status, code, param, stream):
    response = await live.post(
        "/v1/completions", {"model": "letters", "prompt": "hi", "stream": stream, **change}
    )
    body = await response.json()
    assert response.status == status
    assert (body["error"]["code"], body["error"]["param"]) == (code, param)
    assert body["error"]["type"] == "invalid_request_error"
    check(body, "ErrorResponse")


async def test_an_overlong_prompt_is_told_in_the_words_that_clients_look_for(live):
    response = await live.post(
        "/v1/completions", {"model": "letters", "prompt": "x" * 1699, "max_tokens": 1024}
    )
    message = (await response.json())["error"]["message"]
    assert message == (
        "This model's maximum context length is 2048 tokens. However, you requested 2723 tokens (1699 in the"
        " prompt; 1024 for the completion). Please reduce your prompt; or completion length."
    )


async def test_a_prompt_beyond_all_bounds_is_not_tokenised(live):
    body = b'{"model": "letters", "prompt": "' + b"x" * 10_000_000 + b'"}'
    response = await live.post("/v1/completions", data=io.BytesIO(body))
    message = (await response.json())["error"]["message"]
    assert response.status == 400
    assert re.search(r"maximum context length is 2048 tokens.*at least \d+", message)


async def test_the_default_shrinks_to_the_room_there_is(live):
    body = await live.complete(prompt=[5] * 2040)
    assert body["usage"]["completion_tokens"] == 8


async def test_unknown_models_get_a_suggestion(live):
    response = await live.post("/v1/completions", {"model": "lettres", "prompt": "x"})
    message = (await response.json())["error"]["message"]
    assert message.startswith("The model `lettres` does not exist. Did you mean `letters`?")


async def test_an_alias_is_a_model_and_answers_under_its_name(live):
    assert (await live.complete("gpt-3.5-turbo-instruct", max_tokens=1))["model"] == "gpt-3.5-turbo-instruct"


async def test_unknown_fields_are_named_in_a_header(live):
    body = {"model": "letters", "prompt": "x", "max_tokens": 1, "zeta": 1, "a\nb": 2, "user": "me"}
    response = await live.post("/v1/completions", body)
    assert response.status == 200
    assert response.headers["X-Sllmd-Ignored-Params"] == "zeta, and 1 more"


async def test_form_type_and_no_type_are_accepted_where_the_body_is_json(live):
    for content_type in ("application/x-www-form-urlencoded", "text/plain", "application/json"):
        response = await live.client.post(
            live.url + "/v1/completions",
            data=b'{"model": "letters", "prompt": "x", "max_tokens": 1}',
            headers={"Content-Type": content_type},
        )
        assert response.status == 200

import asyncio
import itertools

import pytest

from tests.api.conftest import events_of
from tests.api.spec import check

HI = [{"role": "user", "content": "hi"}]
COMPLETION = {"model": "letters", "prompt": "hi", "max_tokens": 8, "seed": 1}
CHAT = {"model": "letters", "messages": HI, "max_tokens": 8, "seed": 1}


async def test_completion_chunks_have_the_shape_of_completions(live):
    *chunks, done = await live.stream("/v1/completions", COMPLETION)
    assert done == "[DONE]"
    for chunk in chunks:
        assert set(chunk) == {"id", "object", "created", "model", "choices"}
        [choice] = chunk["choices"]
        assert set(choice) == {"text", "index", "logprobs", "finish_reason"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [
        *[None] * (len(chunks) - 1),
        "length",
    ]
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    check(chunks[-1], "CreateCompletionResponse")


async def test_chat_chunks_begin_with_a_role_and_end_empty(live):
    *chunks, done = await live.stream("/v1/chat/completions", CHAT)
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [*[None] * (len(chunks) - 1), "length"]
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        check(chunk, "CreateChatCompletionStreamResponse")


@pytest.mark.parametrize("model", ["letters", "tiny"])
async def test_a_stream_says_what_the_whole_answer_says(live, model):
    body = {**COMPLETION, "model": model, "max_tokens": 60, "prompt": "é🙂"}
    chunks = (await live.stream("/v1/completions", body))[:-1]
    whole = await (await live.post("/v1/completions", body)).json()
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    body = {**CHAT, "model": model, "max_tokens": 60}
    chunks = (await live.stream("/v1/chat/completions", body))[:-1]
    whole = await (await live.post("/v1/chat/completions", body)).json()
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert said == whole["choices"][0]["message"]["content"]


async def test_streamed_logprobs_are_those_of_the_whole_answer(live):
    body = {**COMPLETION, "model": "tiny", "logprobs": 2, "echo": True, "prompt": "né", "max_tokens": 20}
    chunks = (await live.stream("/v1/completions", body))[:-1]
    whole = (await (await live.post("/v1/completions", body)).json())["choices"][0]
    said = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    for name in whole["logprobs"]:
        assert list(itertools.chain(*(part[name] for part in said))) == whole["logprobs"][name]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["text"]
    body = {**CHAT, "model": "tiny", "logprobs": True, "top_logprobs": 2, "max_tokens": 20}
    chunks = (await live.stream("/v1/chat/completions", body))[:-1]
    whole = (await (await live.post("/v1/chat/completions", body)).json())["choices"][0]
    said = [c["choices"][0]["logprobs"]["content"] for c in chunks if c["choices"][0]["logprobs"]]
    assert list(itertools.chain(*said)) == whole["logprobs"]["content"]


async def test_choices_interleave_each_under_its_index(live):
    body = {"model": "slow", "prompt": ["a", "b"], "n": 2, "max_tokens": 6, "seed": 1}
    chunks = (await live.stream("/v1/completions", body))[:-1]
    indexes = [chunk["choices"][0]["index"] for chunk in chunks]
    assert set(indexes) == {0, 1, 2, 3}
    assert indexes != sorted(indexes)
    whole = await (await live.post("/v1/completions", body)).json()
    for choice in whole["choices"]:
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in mine) == choice["text"]
        assert [piece["finish_reason"] for piece in mine] == [*[None] * (len(mine) - 1), "length"]


async def test_chat_choices_each_have_a_role_and_an_end(live):
    chunks = (await live.stream("/v1/chat/completions", {**CHAT, "n": 3}))[:-1]
    roles = [c["choices"][0]["index"] for c in chunks if "role" in c["choices"][0]["delta"]]
    ends = [c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]]
    assert sorted(roles) == sorted(ends) == [0, 1, 2]


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", COMPLETION), ("/v1/chat/completions", CHAT)])
async def test_usage_comes_last_without_choices_and_only_when_asked_for(live, path, body):
    *chunks, last, done = await live.stream(path, {**body, "stream_options": {"include_usage": True}})
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 8
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 8
    assert all(chunk["usage"] is None for chunk in chunks)
    plain = await live.stream(path, body)
    assert not any("usage" in chunk for chunk in plain[:-1])
    off = await live.stream(path, {**body, "stream_options": {"include_usage": False}})
    assert not any("usage" in chunk for chunk in off[:-1])


async def test_continuous_usage_counts_up(live):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, _, _ = await live.stream("/v1/completions", {**COMPLETION, "stream_options": options})
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == list(range(1, 9))


async def test_headers_tell_where_the_time_went(live):
    response = await live.post("/v1/completions", {**COMPLETION, "stream": True})
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Accel-Buffering"] == "no"
    assert response.headers["X-Sllmd-Cold"] == "1"
    assert response.headers["X-Sllmd-Node"] == "test"
    assert response.headers["X-Sllmd-Ran-On"] == "test"
    assert response.headers["X-Sllmd-Tier"] == "ssd"
    assert "load;dur=" in response.headers["Server-Timing"]
    assert 'desc="' in response.headers["Server-Timing"]
    assert response.headers["x-request-id"].startswith("req_")
    assert int(response.headers["openai-processing-ms"]) >= 0
    await response.read()
    warm = await live.post("/v1/completions", COMPLETION)
    assert warm.headers["X-Sllmd-Cold"] == "0"
    assert "load;dur=0.0," in warm.headers["Server-Timing"]


async def test_a_failure_before_the_first_token_is_a_status(live):
    for body in ({"model": "breaks-at-once", "prompt": "x"}, {"model": "unbuildable", "prompt": "x"}):
        response = await live.post("/v1/completions", {**body, "stream": True})
        assert response.status == 503
        check(await response.json(), "ErrorResponse")


async def test_a_model_that_cannot_be_built_says_why_and_is_not_retried(live):
    response = await live.post("/v1/completions", {"model": "unbuildable", "prompt": "x"})
    error = (await response.json())["error"]
    assert response.status == 503
    assert response.headers["x-should-retry"] == "false"
    assert (error["code"], error["param"]) == ("model_load_failed", "model")
    assert "the weights make no sense" in error["message"]


@pytest.mark.parametrize("choices", [1, 2])
async def test_a_failure_after_it_is_an_event_and_the_end(live, choices):
    *chunks, error, done = await live.stream(
        "/v1/completions", {"model": "breaks", "prompt": "x", "n": choices, "max_tokens": 10}
    )
    assert done == "[DONE]"
    assert error["error"]["code"] == "worker_lost"
    assert set(error["error"]) == {"message", "type", "param", "code"}
    assert chunks
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks)


async def test_headers_go_out_when_the_wait_is_long_and_silence_is_commented(serve):
    async with serve(api={"hold_headers": 0.05, "sse_keepalive": 0.05}) as live:
        response = await live.post("/v1/completions", {**COMPLETION, "model": "building", "stream": True})
        assert response.status == 200
        assert not {"Server-Timing", "X-Sllmd-Cold", "X-Sllmd-Tier"} & response.headers.keys()
        assert await response.content.readuntil(b"\n\n") == b": keepalive\n\n"
        assert await response.content.readuntil(b"\n\n") == b": keepalive\n\n"
        response.close()


async def test_a_refusal_after_the_headers_is_counted(serve):
    async with serve(api={"hold_headers": 0.01}, serving={"queue_timeout": "300ms"}) as live:
        *_, error, _ = await live.stream("/v1/completions", {**COMPLETION, "model": "building"})
        assert error["error"]["code"] == "startup_timeout"
        text = await (await live.get("/metrics")).text()
        assert 'sllmd_requests_rejected_total{reason="startup_timeout"} 1.0' in text


async def test_comments_can_be_switched_off(serve):
    async with serve(api={"hold_headers": 0.01, "sse_keepalive": 0}) as live:
        response = await live.post("/v1/completions", {**COMPLETION, "model": "building", "stream": True})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(response.content.read(1), 0.2)
        response.close()


async def test_an_early_role_when_headers_could_not_wait(serve):
    async with serve(api={"hold_headers": 0.01}) as live:
        response = await live.post("/v1/chat/completions", {**CHAT, "model": "building", "stream": True})
        first = events_of(await response.content.readuntil(b"\n\n"))
        assert first[0]["choices"][0]["delta"]["role"] == "assistant"
        response.close()


async def test_text_that_needs_escaping_arrives_whole(live):
    prompt = 'a "quoted" \\ line\n\u2028 and \x00 control'
    body = {**COMPLETION, "prompt": prompt, "echo": True}
    chunks = (await live.stream("/v1/completions", body))[:-1]
    assert chunks[0]["choices"][0]["text"] == prompt

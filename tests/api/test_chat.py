import pytest

from tests.api.spec import check

HI = [{"role": "user", "content": "hi"}]


async def chat(live, model="letters", messages=HI, **fields):
    response = await live.post(
        "/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 6, **fields}
    )
    return response.status, await response.json()


async def test_an_answer_has_every_key(live):
    status, body = await chat(live)
    assert status == 200
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    [choice] = body["choices"]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert set(choice["message"]) == {"role", "content", "refusal"}
    assert len(choice["message"]["content"]) == 6
    check(body, "CreateChatCompletionResponse")


async def test_the_template_writes_the_prompt(live):
    _, body = await chat(live)
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ids = (await (await live.post("/tokenize", {"model": "letters", "messages": HI})).json())["tokens"]
    assert body["usage"]["prompt_tokens"] == len(ids)
    back = await live.post("/detokenize", {"model": "letters", "tokens": ids})
    assert (await back.json())["prompt"] == rendered


async def test_answers_may_use_all_the_room_there_is(live):
    _, body = await chat(live, max_tokens=None)
    assert body["usage"]["total_tokens"] == 2048
    assert body["choices"][0]["finish_reason"] == "length"


async def test_max_completion_tokens_wins(live):
    _, body = await chat(live, max_completion_tokens=3)
    assert body["usage"]["completion_tokens"] == 3


async def test_several_answers(live):
    _, body = await chat(live, n=3, seed=1)
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in body["choices"]}) == 3
    _, alone = await chat(live, seed=1)
    assert alone["choices"][0] == body["choices"][0]
    assert body["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]


@pytest.mark.parametrize("top", [None, 0, 3, 20])
async def test_logprobs(live, top):
    _, body = await chat(live, logprobs=True, top_logprobs=top)
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None
    content = logprobs["content"]
    assert len(content) == 6
    for token in content:
        assert set(token) == {"token", "logprob", "bytes", "top_logprobs"}
        assert bytes(token["bytes"]).decode() == token["token"]
        assert len(token["top_logprobs"]) == (top or 0)
    check(body, "CreateChatCompletionResponse")


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "developer", "content": "be brief"}, *HI],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        [*HI, {"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "x"}],
        [{"role": "user", "content": "hi", "name": "me"}],
        [{"role": "user", "content": ""}],
    ],
)
async def test_messages_of_every_kind(live, messages):
    status, body = await chat(live, messages=messages)
    assert status == 200, body


REFUSED = [
    ({"model": "chatless"}, "invalid_value", "model"),
    ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        *("unsupported_parameter", "messages[0].content[0]"),
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "invalid_type",
        "messages[0].content[0]",
    ),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, "context_length_exceeded", "messages"),
    ({"max_tokens": 2048}, "context_length_exceeded", "messages"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "unsupported_parameter", "tools"),
]


@pytest.mark.parametrize(("change", "code", "param"), REFUSED)
async def test_refusals(live, change, code, param):
    status, body = await chat(live, **{"messages": HI, **change})
    assert status == 400
    assert (body["error"]["code"], body["error"]["param"]) == (code, param)
    check(body, "ErrorResponse")


async def test_template_values_reach_the_template_and_cannot_replace_the_messages(live):
    status, _ = await chat(live, chat_template_kwargs={"enable_thinking": False})
    assert status == 200
    _, plain = await chat(live, seed=1)
    _, other = await chat(
        live, seed=1, chat_template_kwargs={"messages": [], "self": 1, "add_generation_prompt": 0}
    )
    assert plain["choices"] == other["choices"]

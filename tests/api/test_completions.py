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
    assert body["usage"]["prompt_tokens"] == 2
    assert body["usage"]["completion_tokens"] == 4
    assert body["usage"]["total_tokens"] == 6

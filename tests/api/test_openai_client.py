"""OpenAI's own Python client against a daemon: it parses strictly, retries, and raises by status."""

import asyncio
from pathlib import Path

import openai
import pytest

from tests.waiting import eventually

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def client(live):
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def strict(live):
    """Refuses what its types do not allow; they do not know that a streamed completion ends only once."""
    async with openai.AsyncOpenAI(
        base_url=f"{live.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


async def test_completions(client, strict):
    whole = await strict.completions.create(model="letters", prompt="hi", max_tokens=5, seed=1)
    stream = await client.completions.create(model="letters", prompt="hi", max_tokens=5, seed=1, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert whole._request_id.startswith("req_")


async def test_chat(strict):
    options = {"model": "stops", "messages": HI, "seed": 1}
    whole = await strict.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    async with strict.chat.completions.stream(**options, stream_options={"include_usage": True}) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.usage.completion_tokens == 6


async def test_models(strict):
    assert "letters" in [model.id async for model in strict.models.list()]
    assert (await strict.models.retrieve("letters")).object == "model"


async def test_errors_have_their_class(client):
    with pytest.raises(openai.NotFoundError) as caught:
        await client.completions.create(model="nope", prompt="x")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.completions.create(model="letters", prompt="x" * 3000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="letters", messages=HI, modalities=["audio"])
    assert caught.value.code == "unsupported_parameter"


async def test_an_error_in_a_stream_is_raised_with_its_message(client):
    stream = await client.completions.create(model="breaks", prompt="x", stream=True)
    with pytest.raises(openai.APIError, match="told to fail at token 3") as caught:
        [chunk async for chunk in stream]
    assert caught.value.code == "worker_lost"


async def test_what_cannot_get_better_is_asked_once(live):
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=2) as client:
        with pytest.raises(openai.InternalServerError, match="the weights make no sense"):
            await client.completions.create(model="unbuildable", prompt="x")
    text = await (await live.get("/metrics")).text()
    assert 'sllmd_requests_total{code="503",endpoint="/v1/completions",model="unbuildable"} 1.0' in text


async def test_a_busy_server_is_asked_again(serve):
    async with serve(serving={"queue_max_per_model": 0}, engine={"batch_max": 1}) as live:
        running = await live.post(
            "/v1/completions", {"model": "slow", "prompt": "x", "stream": True, "max_tokens": 40}
        )
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=3) as client:
            answer, _ = await asyncio.gather(
                client.completions.create(model="slow", prompt="x", max_tokens=1), running.read()
            )
        assert answer.choices
        text = await (await live.get("/metrics")).text()
        assert 'sllmd_requests_rejected_total{reason="queue_full"}' in text


async def test_closing_a_stream_cancels(client, live):
    stream = await client.completions.create(model="slow", prompt="x", stream=True, max_tokens=1000)
    await anext(aiter(stream))
    await stream.close()
    await eventually(lambda: live.daemon.router.requests()[0].state != "decode")
    assert live.daemon.router.requests()[0].state == "cancelled"


def test_the_trimmed_specification_says_whose_it_is():
    text = (Path(__file__).parent.parent / "data" / "openai-openapi-trimmed.yaml").read_text()
    assert "MIT" in text[:600]

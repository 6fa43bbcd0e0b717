"""OpenAI's Python client, blocking and asynchronous, against the real engine in its own process.

What can be seen with the fake engine in the test's own process is in ``tests/api/test_openai_client.py``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.judges.conftest import ACTING
from tests.live import FAKE, LiveDaemon, live_daemon, put_model
from tests.waiting import until

pytestmark = pytest.mark.slow
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(real: LiveDaemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    options = {"model": "tiny", "messages": HI, "max_tokens": 40, "seed": 3}
    whole = client.chat.completions.create(**options)
    stream = client.chat.completions.create(**options, stream=True)
    chunks = list(stream)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    )
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_raw_responses_have_what_servers_tell_beside_the_body(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model="gpt-6-astra", prompt="hi", max_tokens=2, extra_headers={"x-request-id": "mine-7"}
    )
    assert raw.request_id == raw.parse()._request_id == "mine-7"
    assert raw.headers["X-Sllmd-Node"]
    assert raw.headers["Server-Timing"].startswith("queue;dur=")
    assert float(raw.headers["openai-processing-ms"]) >= 0
    assert raw.parse().model == "gpt-6-astra"


async def test_many_streams_at_once_say_what_each_says_alone(real: LiveDaemon) -> None:
    async with openai.AsyncOpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0) as client:

        async def ask(number: int) -> str:
            stream = await client.completions.create(
                model="tiny", prompt=f"{number}" * (number + 1), max_tokens=24, temperature=0, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        alone = [await ask(number) for number in range(16)]
        together = await asyncio.gather(*(ask(number) for number in range(16)))
    assert together == alone
    assert len(set(alone)) > 1


async def test_closing_a_stream_frees_its_row(acting: LiveDaemon) -> None:
    async with openai.AsyncOpenAI(base_url=f"{acting.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(model="slow", prompt="x", stream=True)
        assert (await anext(aiter(stream))).choices[0].text
        assert acting.status()["requests_running"] == 1
        await stream.close()
        await asyncio.to_thread(until, lambda: not acting.status()["requests_running"], "its row is free")
    assert acting.requests()[0]["state"] == "cancelled"


def test_a_client_that_gives_up_waiting_frees_its_row(acting: LiveDaemon) -> None:
    with (
        openai.OpenAI(base_url=f"{acting.url}/v1", api_key="none", max_retries=0, timeout=1) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.completions.create(model="slow", prompt="x", max_tokens=5)
    until(lambda: not acting.status()["requests_running"], "its row is free")


def test_a_full_queue_is_met_with_patience(busy: LiveDaemon) -> None:
    """The blocking client obeys Retry-After by itself; without retries it raises what it was told."""
    with busy.streaming("steady", max_tokens=200) as stream:
        next(stream)
        with openai.OpenAI(base_url=f"{busy.url}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                client.completions.create(model="steady", prompt="x", max_tokens=1)
            assert caught.value.code == "queue_full"
            assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 60
            reading = threading.Thread(target=lambda: list(stream))
            reading.start()
            patient = client.with_options(max_retries=20)
            assert patient.completions.create(model="steady", prompt="x", max_tokens=1).usage
            reading.join()


def test_a_worker_that_dies_is_retried_unnoticed(tmp_path: Path) -> None:
    """``worker_lost`` before the first token is a 503: the client's own retry meets a new worker."""
    put_model(tmp_path, "slow", ACTING["slow"])
    with live_daemon(tmp_path, FAKE) as daemon:
        answers: list[object] = []

        def ask() -> None:
            with openai.OpenAI(
                base_url=f"{daemon.url}/v1", api_key="none", max_retries=2, timeout=60
            ) as client:
                answers.append(client.completions.create(model="slow", prompt="x", max_tokens=2, stream=True))

        with daemon.streaming("slow") as stream:
            next(stream)
            pid = daemon.worker_pid("slow")
            os.kill(pid, signal.SIGSTOP)
            asking = threading.Thread(target=ask)
            asking.start()
            until(lambda: daemon.status()["requests_running"] == 2, "both run")
            os.kill(pid, signal.SIGKILL)
            asking.join(60)
        assert len(answers) == 1

"""The one client of all servers: asks for a streamed completion and notes when each piece arrived.

Knows the OpenAI wire and nothing of who answers. Token counts come from the server's own ``usage``, checked
against ``max_tokens`` by whoever asks; arrival times are this process's clock.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

REQUEST_TIMEOUT_SECONDS = 300.0
_SERVER_TIMING = re.compile(r"([\w→.-]+)((?:;[^,]*)*)")


@dataclass(frozen=True)
class Target:
    """A model on a server, and what that server needs said besides."""

    base_url: str
    model: str
    extra: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stream:
    """One answer. Times are seconds since the request was sent."""

    arrivals_seconds: tuple[float, ...]
    """Of every chunk that carried text."""
    total_seconds: float
    tokens: int
    timing_ms: dict[str, float]
    """The Server-Timing header."""
    request_id: str

    @property
    def first_token_seconds(self) -> float:
        """When the first text came."""
        return self.arrivals_seconds[0]


class BadAnswer(Exception):
    """A server answered with an error, or with less than it was asked for."""


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Connections without a limit on their number; nothing is retried."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
    # A connection per request: a peer that has just loaded or been paused may hang up on one that idled.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
        yield http


async def stream(http: aiohttp.ClientSession, target: Target, prompt: str, max_tokens: int) -> Stream:
    """A greedy completion of ``prompt``. Raises BadAnswer."""
    body = {
        "model": target.model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **target.extra,
    }
    arrivals: list[float] = []
    usage: dict[str, int] = {}
    begin = time.perf_counter()
    async with http.post(f"{target.base_url}/v1/completions", json=body, headers=target.headers) as answer:
        if answer.status != 200:
            raise BadAnswer(f"{target.base_url}: {answer.status} {(await answer.text())[:500]}")
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter() - begin
            chunk = json.loads(line[6:])
            if chunk.get("error"):
                raise BadAnswer(f"{target.base_url}: {chunk['error']}")
            usage = chunk.get("usage") or usage
            if any(choice.get("text") for choice in chunk["choices"]):
                arrivals.append(now)
        total = time.perf_counter() - begin
        timing = parse_server_timing(answer.headers.get("Server-Timing", ""))
        request_id = answer.headers.get("x-request-id", "")
    if not arrivals:
        raise BadAnswer(f"{target.base_url}: a stream without text")
    return Stream(tuple(arrivals), total, usage.get("completion_tokens", len(arrivals)), timing, request_id)


async def throughput(
    http: aiohttp.ClientSession, target: Target, prompts: Sequence[str], max_tokens: int
) -> float:
    """Tokens per second over one batch of simultaneous requests. Raises BadAnswer on a short answer."""
    begin = time.perf_counter()
    streams = await asyncio.gather(*(stream(http, target, prompt, max_tokens) for prompt in prompts))
    seconds = time.perf_counter() - begin
    short = [answer.tokens for answer in streams if answer.tokens != max_tokens]
    if short:
        raise BadAnswer(f"{target.base_url}: asked for {max_tokens} tokens, got {short}")
    return sum(answer.tokens for answer in streams) / seconds


def longest_gap_seconds(arrivals_seconds: Sequence[float], begin_seconds: float, end_seconds: float) -> float:
    """The longest time without text that overlaps the window; both in seconds of the stream.

    Raises BadAnswer when the stream does not span the window.
    """
    if not arrivals_seconds[0] <= begin_seconds < end_seconds <= arrivals_seconds[-1]:
        raise BadAnswer("the running stream does not span the load")
    gaps = [
        later - earlier
        for earlier, later in itertools.pairwise(arrivals_seconds)
        if later >= begin_seconds and earlier <= end_seconds
    ]
    return max(gaps)


def parse_server_timing(header: str) -> dict[str, float]:
    """``queue;dur=3, load;dur=812;desc="x"`` as {"queue": 3.0, "load": 812.0}."""
    timing: dict[str, float] = {}
    for name, parameters in _SERVER_TIMING.findall(header):
        duration = re.search(r"dur=([\d.]+)", parameters)
        if duration:
            timing[name] = float(duration[1])
    return timing

"""A stream's stall is looked for while another model loads and in the time right after it."""

import asyncio
import json
from functools import partial

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks import serve
from benchmarks.client import Target, session

STALL_SECONDS = 0.3
TEXT = b"data: " + json.dumps({"choices": [{"text": "x"}]}).encode() + b"\n\n"


async def answer(after_load: asyncio.Event, request: web.Request) -> web.StreamResponse:
    """The other model answers at once; right after it, the running stream is held up."""
    response = web.StreamResponse()
    await response.prepare(request)
    running = (await request.json())["model"] == "running"
    stalled = False
    left = 60 if running else 1  # behind the load, which takes as long as it takes
    while left:
        left -= not running or after_load.is_set()
        if running and after_load.is_set() and not stalled:
            stalled = True
            await response.write(TEXT)  # so that the gap begins after the load
            await asyncio.sleep(STALL_SECONDS)
        await response.write(TEXT)
        await asyncio.sleep(0.01)
    after_load.set()
    return response


async def test_a_stall_right_behind_a_load_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "BEFORE_LOAD_SECONDS", 0.05)
    monkeypatch.setattr(serve, "AFTER_LOAD_SECONDS", 0.2)
    monkeypatch.setattr(serve, "prompt", lambda _tokens, seed: seed)
    app = web.Application()
    app.router.add_post("/v1/completions", partial(answer, asyncio.Event()))
    async with TestServer(app) as server, session() as http:
        url = str(server.make_url("")).rstrip("/")
        gap = await serve._stall_seconds(http, Target(url, "running"), Target(url, "other"), "seed")
    assert gap > STALL_SECONDS / 2, "without it gaps are a thirtieth of it"

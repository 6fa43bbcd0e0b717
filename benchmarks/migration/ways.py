"""The four ways to serve B where A runs, each as well as this daemon can do it; see ``paper``.

* **migration**: B is ordered at ``near``, where it waits for the device, and A is ordered to ``far`` in the
  same moment: far starts A from DRAM and computes its keys and values while near decodes on; then A's replica
  goes, and B's comes from near's disk.
* **waiting**: B is ordered at near, and waits for the end of A's answer.
* **preempting**: B is ordered at near, and A's worker is killed: nothing frees a device sooner. A goes on at
  far from the router's ledger, where its replica has to start first; both start side by side.
* **loading remotely**: B is ordered at far, which fetches it from the storage server; A is left in peace. The
  link is capped to a fifth of what near's disk gives (``scene``).

Whoever needs B orders its replica where it shall be and asks at once when that is ready; the time of the
order counts. So the ways differ by what is done with A, and not by what a scheduler would have chosen.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable

import aiohttp

from benchmarks.environments import log
from benchmarks.migration.scene import B, Scene
from benchmarks.migration.stage import MODEL, Server, move
from tests.waiting import until

Way = Callable[[Scene, str], Awaitable[tuple[float, float]]]
"""Given A's request: the moments of the order, and of B's first token."""


async def migration(here: Scene, request_id: str) -> tuple[float, float]:
    """See the module."""
    ordered_seconds = time.monotonic()
    first_seconds, moved = await asyncio.gather(
        _first_token(here.near, B), move(here.router, request_id, here.far.name)
    )
    if moved is None or moved["result"] != "done":
        raise RuntimeError(f"A did not move: {moved}")
    log(f"paper: A moved in {moved['seconds']:.3f} s, {moved['rounds']} rounds")
    return ordered_seconds, first_seconds


async def waiting(here: Scene, _request_id: str) -> tuple[float, float]:
    """See the module."""
    return time.monotonic(), await _first_token(here.near, B)


async def preempting(here: Scene, _request_id: str) -> tuple[float, float]:
    """See the module. Counted from the kill: that B's order arrives before it is part of the play."""
    near = here.near
    worker = await asyncio.to_thread(near.live.worker_pid, MODEL)
    first = asyncio.create_task(_first_token(near, B))
    await asyncio.to_thread(until, lambda: near.live.status()["requests_waiting"], "B's order waits")
    ordered_seconds = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    return ordered_seconds, await first


async def loading_remotely(here: Scene, _request_id: str) -> tuple[float, float]:
    """See the module."""
    return time.monotonic(), await _first_token(here.far, here.remote_b)


async def _first_token(server: Server, model: str) -> float:
    """Have the model loaded there, and ask it; the moment of its first token."""
    url = server.live.url
    body = {"model": model, "prompt": "Once", "max_tokens": 1, "temperature": 0, "stream": True}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=180)) as session:
        async with session.post(f"{url}/sllmd/v1/models/{model}/load", json={"stream": False}) as response:
            if response.status != 200:
                raise RuntimeError(f"{server.name} does not load {model}: {await response.text()}")
        async with session.post(f"{url}/v1/completions", json=body) as response:
            async for line in response.content:
                if line.startswith(b"data: {") and b'"error"' not in line:
                    return time.monotonic()
                if line.startswith(b"data: "):
                    raise RuntimeError(f"{model} does not answer: {line.decode()}")
            raise RuntimeError(f"{model} does not answer: {response.status}")


WAYS: dict[str, Way] = {
    "migration": migration,
    "waiting": waiting,
    "preempting": preempting,
    "loading remotely": loading_remotely,
}

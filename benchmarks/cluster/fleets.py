"""What the sections that run real daemons share: a fleet that is ready, and requests that are timed."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from tests.storm.fleet import Daemon, Fleet, fleet
from tests.storm.namespaces import Namespaces

MODEL = "warm"
TOKENS = 8
TOKEN_SECONDS = 0.002
VOTERS: Mapping[str, object] = {"cluster.voters.settle_seconds": 1.0}
"""A bench does not wait ten seconds until a node is trusted with a vote."""


@asynccontextmanager
async def a_fleet(
    count: int,
    voters: int,
    *,
    network: Namespaces | None = None,
    settings: Mapping[str, object] = VOTERS,
    holders: Sequence[int] | None = None,
    token_seconds: float = TOKEN_SECONDS,
) -> AsyncIterator[Fleet]:
    """Daemons that have settled. ``holders``: who has the model, all if None; nobody has loaded it yet."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        async with fleet(
            Path(directory),
            count,
            settings,
            network=network,
            models={MODEL: range(count) if holders is None else holders},
            fake={"token_seconds": token_seconds},
        ) as group:
            await group.settled(voters)
            yield group


@dataclass(frozen=True, slots=True)
class Asked:
    """One warm request."""

    begun: float
    """Monotonic seconds."""
    seconds: float
    failure: str | None


async def ask_warm(daemon: Daemon) -> Asked:
    """A short completion through ``daemon``."""
    begun = time.monotonic()
    body = {"model": MODEL, "prompt": "hi", "max_tokens": TOKENS, "ignore_eos": True}
    failure = None
    try:
        status, answer = await daemon.ask("POST", "/v1/completions", body, seconds=30)
        failure = None if status == 200 else f"{daemon.name}: {status} {answer}"
    except (aiohttp.ClientError, TimeoutError) as error:
        failure = f"{daemon.name}: {error!r}"
    return Asked(begun, time.monotonic() - begun, failure)


@asynccontextmanager
async def asking(daemons: Sequence[Daemon], *, each_seconds: float) -> AsyncIterator[list[Asked]]:
    """Warm requests through each daemon in turn, all the while."""
    asked: list[Asked] = []
    stop = asyncio.Event()

    async def ask_on() -> None:
        turn = 0
        while not stop.is_set():
            asked.append(await ask_warm(daemons[turn % len(daemons)]))
            turn += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), each_seconds)

    tasks = [asyncio.create_task(ask_on()) for _ in range(2)]
    try:
        yield asked
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def put(daemon: Daemon, key: str, value: str, *, seconds: float = 15.0) -> int | None:
    """Write a deployment; its revision once it is acknowledged, None if it was not."""
    try:
        status, body = await daemon.ask(
            "PUT", f"/sllmd/v1/deployments/{key}", {"digest": "d", "source": value}, seconds=seconds
        )
    except (aiohttp.ClientError, TimeoutError):
        return None
    return int(body["revision"]) if status == 200 else None


async def committed(daemon: Daemon, key: str, value: str, *, within_seconds: float = 30.0) -> float:
    """Seconds until a write through ``daemon`` is acknowledged, however often it must be sent."""
    begun = time.monotonic()
    while await put(daemon, key, value) is None:
        if time.monotonic() > begun + within_seconds:
            raise RuntimeError(f"no write through {daemon.name} within {within_seconds} s\n{daemon.log()}")
        await asyncio.sleep(0.01)
    return time.monotonic() - begun

"""The load of the sections with bursts: four daemons, eight models, two devices each, capped paths.

Every model is on every SSD, DRAM holds half of them. A trace is played in real time, requests go to the
daemons in turn; how each went is read from the daemons afterwards.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import aiohttp

from benchmarks.scheduler.stage import Shelf, complete, shelf, stage
from sllmd.core.ids import ModelName
from sllmd.core.units import MIB
from sllmd.simulator.traces import Arrival, Lengths, gamma_bursts
from tests.storm.fleet import Daemon, Fleet

NODES, MODELS, DEVICES, ROWS = 4, 8, 2, 4
MODEL_BYTES = 24 * MIB
DRAM_BYTES = MODELS // 2 * MODEL_BYTES
KEEP_ALIVE_SECONDS = 6.0
REQUESTS_PER_SECOND, CV = 2.0, 8.0
LENGTHS = Lengths(40, 60)
NAMES = [ModelName(f"m{number}") for number in range(MODELS)]
_numbers = count()


@dataclass(slots=True)
class Played:
    """A request of the trace, and what became of it."""

    arrival: Arrival
    request_id: str
    router: Daemon
    begun: float
    """Monotonic seconds."""
    failure: str | None = None
    ended: float = 0.0


@dataclass
class Player:
    """Plays traces on a fleet."""

    group: Fleet
    played: list[Played] = field(default_factory=list)

    async def play(self, trace: Sequence[Arrival], routers: Callable[[], Sequence[Daemon]]) -> None:
        """Each request at its time, through the next of ``routers``; returns when all have ended."""
        begun = time.monotonic()
        async with asyncio.TaskGroup() as asking:
            for number, arrival in enumerate(trace):
                await asyncio.sleep(max(0.0, begun + arrival.seconds - time.monotonic()))
                among = routers()
                asking.create_task(self._ask(arrival, among[number % len(among)]))

    async def _ask(self, arrival: Arrival, router: Daemon) -> None:
        one = Played(arrival, f"load-{next(_numbers)}", router, time.monotonic())
        self.played.append(one)
        one.failure = await complete(
            router,
            arrival.model,
            one.request_id,
            prompt_tokens=arrival.tokens_in,
            tokens=arrival.tokens_out,
        )
        one.ended = time.monotonic()


def trace(seconds: float, seed: int, cv: float = CV) -> list[Arrival]:
    """Bursts for all models."""
    return gamma_bursts(
        NAMES, requests_per_second=REQUESTS_PER_SECOND, cv=cv, seconds=seconds, lengths=LENGTHS, seed=seed
    )


@asynccontextmanager
async def loaded_stage() -> AsyncIterator[Fleet]:
    """The daemons, no model loaded."""
    async with shelf() as made:
        await asyncio.to_thread(_stock, made)
        settings = {
            "loader.dram_budget": str(DRAM_BYTES + 2 * MIB * MODELS),
            "serving.keep_alive": str(KEEP_ALIVE_SECONDS),
            "engine.batch_max": ROWS,
            "routing.report_interval": "200ms",
        }
        async with stage(NODES, made, {name: range(NODES) for name in NAMES}, settings) as group:
            yield group


def _stock(made: Shelf) -> None:
    for name in NAMES:
        made.keep(name, str(made.make(name, MODEL_BYTES)))


async def explained(daemons: Sequence[Daemon]) -> dict[str, dict[str, Any]]:
    """What each daemon tells of its requests, by their id."""
    found = {}
    for daemon in daemons:
        try:
            _, said = await daemon.ask("GET", "/sllmd/v1/requests", seconds=60)
        except (aiohttp.ClientError, TimeoutError):
            continue  # it was killed; what it routed is not judged
        found |= {each["request_id"]: each for each in said["requests"]}
    return found

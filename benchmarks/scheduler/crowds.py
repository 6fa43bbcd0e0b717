"""Crowds, in rows: ten models that rush one device, a thousand requests for two hundred cold models, and one
model that several nodes start at the same time.

None may fail. Of the chain: who fetches from whom, and how much longer than one fetch all of them take.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Goal, Report
from benchmarks.scheduler.stage import CAPS, Shelf, complete, shelf, stage
from sllmd.core.units import MIB
from tests.storm.fleet import Fleet

GOALS: tuple[Goal, ...] = ()
RUSHED, EACH = 10, 5
COLD_MODELS, REQUESTS = 200, 1000
CHAINED_BYTES, CHAINED_NODES = 48 * MIB, 4


def measure(report: Report, options: Options) -> None:  # noqa: ARG001 - each is one crowd
    """One after the other."""
    asyncio.run(_rush(report))
    asyncio.run(_flood(report))
    asyncio.run(_chain(report))


@asynccontextmanager
async def _models(
    nodes: int, names: Sequence[str], size_bytes: int, settings: dict[str, object], holders: Sequence[int]
) -> AsyncIterator[Fleet]:
    def stock(made: Shelf) -> None:
        for name in names:
            made.keep(name, str(made.make(name, size_bytes)))

    async with shelf() as made:
        await asyncio.to_thread(stock, made)
        async with stage(nodes, made, dict.fromkeys(names, holders), settings) as group:
            yield group


async def _ask_all(report: Report, what: str, group: Fleet, asked: Sequence[str]) -> None:
    """All at once, through the daemons in turn."""
    begun = time.monotonic()
    daemons = group.daemons
    failures = await asyncio.gather(
        *(
            complete(daemons[n % len(daemons)], model, f"{what[:4]}-{n}", prompt_tokens=4, tokens=4)
            for n, model in enumerate(asked)
        )
    )
    for failure in {failure for failure in failures if failure}:
        log(f"{what}: {failure}")
    report.row(f"{what}: until all had their answers", [time.monotonic() - begun], "s")
    report.row(f"{what}: failed", [sum(failure is not None for failure in failures)], "requests")


async def _rush(report: Report) -> None:
    names = [f"m{number}" for number in range(RUSHED)]
    settings = {"devices.cpu_devices": 1}
    async with _models(1, names, 8 * MIB, settings, [0]) as group:
        await _ask_all(report, "ten models rush one device", group, names * EACH)


async def _flood(report: Report) -> None:
    names = [f"m{number}" for number in range(COLD_MODELS)]
    asked = [names[number % COLD_MODELS] for number in range(REQUESTS)]
    random.Random("flood").shuffle(asked)
    async with _models(4, names, MIB, {"devices.replicas_max": 4}, range(4)) as group:
        await _ask_all(report, "1,000 requests for 200 cold models", group, asked)


async def _chain(report: Report) -> None:
    """All nodes but one load what that one has, at once."""
    async with _models(CHAINED_NODES, ["m"], CHAINED_BYTES, {}, [0]) as group:
        begun = time.monotonic()
        path = "/sllmd/v1/models/m/load"
        order = {"tier": "dram", "stream": False}
        answers = await asyncio.gather(
            *(each.ask("POST", path, order, seconds=120) for each in group.daemons[1:])
        )
        seconds = time.monotonic() - begun
        for status, said in answers:
            if status != 200:
                raise RuntimeError(f"not loaded: {said}")
    report.row("three nodes fetch one model at once", [seconds], "s")
    report.row("one fetch at the cap", [CHAINED_BYTES / CAPS["peer"]], "s")

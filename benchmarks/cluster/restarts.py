"""The whole cluster is killed under write load and started again: when it takes writes, and what is lost.

Time runs from starting the processes, so python's own start is in it. Every acknowledged write of all rounds
must be there, or one after it: revisions only grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time

import aiohttp

from benchmarks.cluster.fleets import a_fleet, committed, put
from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Goal, Report
from tests.storm.clients import Notes, Written, lost_writes
from tests.storm.fleet import Daemon, Fleet

GOALS = (Goal("cluster.restart_s", "s", "<=", 3), Goal("cluster.lost", "writes", "<=", 0))
VOTERS = 3
RESTARTS_PER_ROUND = 10
"""Five rounds make the fifty that the targets speak of."""
WRITERS = 8
WRITE_SECONDS = 0.7


def measure(report: Report, options: Options) -> None:
    """All restarts on one cluster."""
    restarts = options.rounds * RESTARTS_PER_ROUND
    seconds, lost, acknowledged = asyncio.run(_measure(restarts))
    report.row("first commit after all were killed and started", seconds, "s")
    report.row("acknowledged writes, all rounds", [acknowledged], "writes")
    for one in lost:
        log(f"lost: {one}")
    report.value("cluster.restart_s", seconds, restarts)
    if len(seconds) >= restarts:
        report.value("cluster.lost", [len(lost)], 1)


async def _measure(restarts: int) -> tuple[list[float], list[str], int]:
    seconds: list[float] = []
    lost: set[str] = set()
    notes = Notes()
    async with a_fleet(VOTERS, VOTERS) as group:
        numbers = itertools.count()
        for number in range(restarts):
            await _kill_all_under_load(group, notes, numbers)
            begun = time.monotonic()
            for daemon in group.daemons:
                daemon.start()
            await _first_commit(group, number)
            seconds.append(time.monotonic() - begun)
            lost |= set(lost_writes(notes, await _final(group)))
    acknowledged = sum(len(writes) for writes in notes.written.values())
    return seconds, sorted(lost), acknowledged


async def _kill_all_under_load(group: Fleet, notes: Notes, numbers: itertools.count[int]) -> None:
    stop = asyncio.Event()

    async def write(writer: int) -> None:
        while not stop.is_set():
            value = str(next(numbers))
            key = f"key{writer}"
            revision = await put(group[writer % VOTERS], key, value, seconds=5)
            if revision is not None:
                notes.written.setdefault(key, []).append(Written(value, revision))

    writers = [asyncio.create_task(write(writer)) for writer in range(WRITERS)]
    await asyncio.sleep(WRITE_SECONDS)
    stop.set()
    for daemon in group.daemons:  # in the middle of what the writers wait for
        daemon.kill()
    await asyncio.gather(*writers)


async def _first_commit(group: Fleet, number: int) -> None:
    """Through whoever takes it first."""
    attempts = [
        asyncio.create_task(committed(daemon, "restarted", f"{number}/{daemon.name}"))
        for daemon in group.daemons
    ]
    await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED)
    for attempt in attempts:
        attempt.cancel()
    done = await asyncio.gather(*attempts, return_exceptions=True)
    if not any(isinstance(one, float) for one in done):
        raise RuntimeError(f"no write within the time: {done}")


async def _final(group: Fleet) -> dict[str, Written | None]:
    daemon = group.daemons[0]
    await daemon.serves()
    return {f"key{writer}": await _read(daemon, f"key{writer}") for writer in range(WRITERS)}


async def _read(daemon: Daemon, key: str) -> Written | None:
    for _ in range(50):
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            status, body = await daemon.ask("GET", f"/sllmd/v1/deployments/{key}?newest=true")
            if status == 200:
                return Written(body["source"], body["revision"])
            if status == 404:
                return None
        await asyncio.sleep(0.1)
    raise RuntimeError(f"{daemon.name} does not answer reads\n{daemon.log()}")

"""kill -9 of what runs streams: the node, and by turns only its worker; 32 streams through a third node.

A stream is broken when its client meets an error, and wrong when its text differs from that of the unmoved
run (``stage.wrong``). The gap is the longest silence of a stream that lost its place, less what recomputing
takes at the measured rate: lost streams are recomputed one after the other, so all of their tokens count.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.migration.stage import (
    MODEL,
    Heard,
    Server,
    busier,
    listen,
    plans,
    prefill_rate,
    stage,
    tokens_come,
    wrong,
)
from benchmarks.report import Goal, Report

GOALS = (
    Goal("migration.broken", "streams", "<=", 0),
    Goal("migration.wrong", "streams", "<=", 0),
    Goal("migration.gap_s", "s", "<=", 1),
)
STREAMS, TOKENS = 32, 200
KILLS = 200


def measure(report: Report, options: Options) -> None:
    """All kills on one cluster."""
    kills = options.kills
    chance = random.Random(1)
    broken = different = excused = done = 0
    gaps: list[float] = []
    with stage() as (a, b, router):
        rate = asyncio.run(prefill_rate(router))
        report.row("prefill rate", [rate], "tokens/s")
        references = asyncio.run(_all(router))
        for number in range(kills):
            victim, heard, gap_seconds = asyncio.run(
                kill(router, (a, b), chance, rate, worker=number % 2 == 1)
            )
            broken += sum(each.error is not None for each in heard)
            for each in heard:
                if each.error is not None:
                    log(f"kill {number}: {each.error}")
            whole = [(one, other) for one, other in zip(heard, references, strict=True) if one.error is None]
            differing, near = wrong([one for one, _ in whole], [other for _, other in whole])
            different, excused = different + differing, excused + near
            gaps += gap_seconds
            done += 1
            _again(victim)
    report.row("broken streams", [broken], "streams", kills=done)
    report.row("streams that differ", [different], "streams", near_ties=excused)
    report.row("gap of a stream that lost its place", gaps, "s")
    if done >= KILLS:
        report.value("migration.broken", [broken], 1)
        allowed = done * STREAMS // 1000
        report.value("migration.wrong", [different - min(excused, allowed)], 1)
        report.value("migration.gap_s", [p99(gaps)], 1)


async def _all(router: Server) -> list[Heard]:
    heard = await asyncio.gather(*(listen(router.live.url, each, tokens=TOKENS) for each in plans(STREAMS)))
    failed = [each.error for each in heard if each.error is not None]
    if failed:
        raise RuntimeError(f"streams fail that nothing disturbs: {failed[:3]}")
    return list(heard)


async def kill(
    router: Server, victims: Sequence[Server], chance: random.Random, rate: float, *, worker: bool
) -> tuple[Server, list[Heard], list[float]]:
    """Kill the one that runs more, in the middle; the streams, and the gaps of those that had run there."""
    heard = plans(STREAMS)
    tasks = [asyncio.create_task(listen(router.live.url, each, tokens=TOKENS)) for each in heard]
    await tokens_come(heard, int(TOKENS * chance.uniform(0.25, 0.6)))
    victim = await busier(victims)
    lost = await asyncio.to_thread(lambda: victim.running)
    before = [len(each.came) for each in heard]
    if worker:
        os.kill(victim.live.worker_pid(MODEL), signal.SIGKILL)
    else:
        victim.live.process.kill()
    killed_seconds = time.monotonic()
    await asyncio.gather(*tasks)
    silences = [
        (_around(each, killed_seconds), count + len(each.prompt))
        for each, count in zip(heard, before, strict=True)
    ]
    moved = sorted(silences, reverse=True)[:lost]
    recompute_seconds = sum(tokens for _, tokens in moved) / rate
    return victim, heard, [max(0.0, silence - recompute_seconds) for silence, _ in moved]


def _around(heard: Heard, moment: float) -> float:
    """The silence in which the moment lay, or the longest one after it."""
    after = replace(heard, came=[each for each in heard.came if each > moment - 0.5])
    return after.longest_seconds


def _again(victim: Server) -> None:
    with contextlib.suppress(ProcessLookupError):
        if victim.live.process.poll() is not None:
            victim.kill()
            victim.start()
    victim.load()


def p99(samples: list[float]) -> float:
    """Infinite, if there are none."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] if ordered else float("inf")

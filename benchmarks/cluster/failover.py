"""The leader of three voters is killed, again and again: how long until a write through a survivor is there.

That is stricter than a new leader's election. Meanwhile the survivors are asked for completions of a model
that each has loaded: none may fail, and what a failover adds is the latency of those asked from the kill
until the write was there, over the median of the second before it.
"""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks.cluster.fleets import MODEL, Asked, a_fleet, asking, committed
from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Goal, Report
from tests.storm.fleet import Fleet

GOALS = (
    Goal("cluster.failover_p99_s", "s", "<=", 2),
    Goal("cluster.failover_failed", "requests", "<=", 0),
    Goal("cluster.failover_added_ms", "ms", "<=", 50),
)
VOTERS = 3
KILLS_PER_ROUND = 10
"""Five rounds make the fifty that the targets speak of."""
CALM_SECONDS = 1.0


def measure(report: Report, options: Options) -> None:
    """All kills on one cluster."""
    kills = options.rounds * KILLS_PER_ROUND
    seconds, added_ms, failures = asyncio.run(_measure(kills))
    report.row("write acknowledged after kill -9 of the leader", seconds, "s")
    report.row("latency added to warm requests meanwhile", added_ms, "ms")
    report.row("failed warm requests per kill", failures, "requests")
    if len(seconds) >= kills:
        report.value("cluster.failover_p99_s", [_p99(seconds)], 1)
        report.value("cluster.failover_added_ms", [_p99(added_ms)], 1)
        report.value("cluster.failover_failed", [sum(failures)], 1)


async def _measure(kills: int) -> tuple[list[float], list[float], list[float]]:
    seconds: list[float] = []
    added_ms: list[float] = []
    failures: list[float] = []
    async with a_fleet(VOTERS, VOTERS) as group:
        await group.warm(MODEL)
        for number in range(kills):
            took, asked, killed_at = await _kill(group, number)
            calm = [one.seconds for one in asked if one.begun + one.seconds < killed_at]
            during = [one.seconds for one in asked if one.begun >= killed_at]
            seconds.append(took)
            added_ms += [(one - statistics.median(calm)) * 1000 for one in during]
            failed = [one.failure for one in asked if one.failure]
            failures.append(len(failed))
            for failure in failed:
                log(f"failover {number}: {failure}")
    return seconds, added_ms, failures


async def _kill(group: Fleet, number: int) -> tuple[float, list[Asked], float]:
    """Seconds to a write, what was asked meanwhile, and when the leader was killed."""
    leader = await group.leader()
    survivors = [daemon for daemon in group.daemons if daemon is not leader]
    async with asking(survivors, each_seconds=0.02) as asked:
        await asyncio.sleep(CALM_SECONDS)
        killed_at = time.monotonic()
        leader.kill()
        took = await committed(survivors[number % 2], "failover", str(number))
    leader.start()
    await leader.serves()
    await group.settled(VOTERS)
    await group.warm(MODEL)
    return took, asked, killed_at


def _p99(samples: list[float]) -> float:
    return statistics.quantiles(samples, n=100)[98] if len(samples) > 1 else samples[0]

"""kill -9 of the only node that has the model loaded: another has the checkpoint, and no replica.

As in ``kills``, and the start that the other node estimates is taken off the gap as well.
"""

from __future__ import annotations

import asyncio
import random

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.migration.kills import kill, p99
from benchmarks.migration.stage import MODEL, prefill_rate, stage
from benchmarks.report import Goal, Report

GOALS = (Goal("migration.gap_cold_s", "s", "<=", 1.5),)


def measure(report: Report, options: Options) -> None:
    """One cluster for each round."""
    chance = random.Random(4)
    gaps: list[float] = []
    for _ in range(options.rounds):
        with stage(loaded=False) as (a, b, router):
            a.load()
            rate = asyncio.run(prefill_rate(router))
            card = b.live.ask("/sllmd/v1/models").body["models"]
            start_seconds = max(each["startup_estimate_seconds"] for each in card if each["name"] == MODEL)
            _, heard, gap_seconds = asyncio.run(kill(router, (a,), chance, rate, worker=False))
            failed = [each.error for each in heard if each.error is not None]
            if failed:
                log(f"cold: {failed[0]}")
                continue
            gaps.append(max(0.0, p99(gap_seconds) - start_seconds))
    report.row("gap, none ready", gaps, "s")
    report.value("migration.gap_cold_s", gaps, options.rounds)

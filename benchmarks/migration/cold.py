"""kill -9 of the only node that has the model loaded: another has the checkpoint, and no replica.

As in ``kills``, and the start that the other node estimates is taken off the gap as well. It is asked
for it once a worker waits there, and before any node serves the model, since after that it is 0.
"""

from __future__ import annotations

import asyncio
import random

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.migration.kills import kill, p99
from benchmarks.migration.stage import MODEL, Server, prefill_rate, stage
from benchmarks.report import Goal, Report
from tests.waiting import until

GOALS = (Goal("migration.gap_cold_s", "s", "<=", 1.5),)


def measure(report: Report, options: Options) -> None:
    """One cluster for each round."""
    chance = random.Random(4)
    gaps: list[float] = []
    for _ in range(options.rounds):
        with stage(loaded=False) as (a, b, router):
            until(lambda: b.waits, "b has a worker that waits for a model")
            start_seconds = _start_seconds(b)
            a.load()
            rate = asyncio.run(prefill_rate(router))
            _, heard, gap_seconds = asyncio.run(kill(router, (a,), chance, rate, worker=False))
            failed = [each.error for each in heard if each.error is not None]
            if failed:
                log(f"cold: {failed[0]}")
                continue
            log(f"cold: {p99(gap_seconds):.2f} s less recomputing; its start: {start_seconds:.2f} s, it says")
            gaps.append(max(0.0, p99(gap_seconds) - start_seconds))
    report.row("gap, none ready", gaps, "s")
    report.value("migration.gap_cold_s", gaps, options.rounds)


def _start_seconds(server: Server) -> float:
    """What it estimates."""
    cards = server.live.ask("/sllmd/v1/models").body["models"]
    [card] = [each for each in cards if each["name"] == MODEL]
    return float(card["startup_estimate_seconds"])

"""What a cluster of five daemons costs that has nothing to do: CPU time of each; gossip, raft, TLS."""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks.cluster.fleets import VOTERS, a_fleet
from benchmarks.cluster.options import Options
from benchmarks.report import Goal, Report
from benchmarks.servers import cpu_seconds, resident_bytes

GOALS = (Goal("cluster.idle_cpu", "share", "<=", 0.01),)
DAEMONS = 5
VOTING = 3
SETTLE_SECONDS = 5.0
ROUND_SECONDS = 10.0


def measure(report: Report, options: Options) -> None:
    """Share of a core, the mean of the five per round; each daemon in the rows."""
    shares, resident = asyncio.run(_measure(options.rounds))
    for name, found in shares.items():
        report.row(f"idle: {name}, CPU", found, "share")
    report.row("idle: daemon, resident", resident, "MB")
    means = [statistics.mean(each) for each in zip(*shares.values(), strict=True)]
    report.value("cluster.idle_cpu", means, options.rounds)


async def _measure(rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    async with a_fleet(DAEMONS, VOTING, settings=VOTERS, holders=[]) as group:
        await asyncio.sleep(SETTLE_SECONDS)
        leader = await group.leader()
        shares: dict[str, list[float]] = {}
        for _ in range(rounds):
            before = {daemon.name: cpu_seconds(daemon.pid) for daemon in group.daemons}
            begun = time.monotonic()
            await asyncio.sleep(ROUND_SECONDS)
            for daemon in group.daemons:
                name = f"{daemon.name}, leader" if daemon is leader else daemon.name
                spent = cpu_seconds(daemon.pid) - before[daemon.name]
                shares.setdefault(name, []).append(spent / (time.monotonic() - begun))
        return shares, [resident_bytes(daemon.pid) / 1e6 for daemon in group.daemons]

"""Two of five daemons are cut off, with the leader or without it, and come back.

While it lasts, both of them and the others are asked for completions of a warm model. Healed is when all
five see all five alive and one leader of one epoch, and a write through each of them is acknowledged. Needs
network namespaces.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from typing import Any

import aiohttp

from benchmarks.cluster.fleets import MODEL, VOTERS, Asked, a_fleet, asking, committed
from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Goal, Report
from tests.storm.fleet import Fleet
from tests.storm.namespaces import Namespaces, namespaces, why_no_namespaces

GOALS = (Goal("cluster.heal_s", "s", "<=", 5),)
DAEMONS = 5
CUT_SECONDS = 8.0
"""Long enough for a new leader, and for members to be believed dead."""


def measure(report: Report, options: Options) -> None:
    """One partition per round; with the leader in the minority in every other."""
    reason = why_no_namespaces()
    if reason is not None:
        raise RuntimeError(reason)
    with namespaces(DAEMONS) as network:
        heals, asked = asyncio.run(_measure(network, options.rounds))
    report.row("healed after a partition 2|3", heals, "s")
    failed = [one.failure for one in asked if one.failure]
    for failure in failed:
        log(f"partition: {failure}")
    report.row("warm requests during partitions, both sides", [len(asked)], "requests")
    report.row("of those failed", [len(failed)], "requests")
    if not failed:
        report.value("cluster.heal_s", heals, options.rounds)


async def _measure(network: Namespaces, rounds: int) -> tuple[list[float], list[Asked]]:
    heals: list[float] = []
    asked_all: list[Asked] = []
    leaders: defaultdict[int, set[str]] = defaultdict(set)
    settings = {**VOTERS, "cluster.voters.count": DAEMONS}
    async with a_fleet(DAEMONS, DAEMONS, network=network, settings=settings) as group:
        await group.warm(MODEL)
        for index in range(rounds):
            leader = group.daemons.index(await group.leader())
            others = [place for place in range(DAEMONS) if place != leader]
            side = {leader, others[0]} if index % 2 == 0 else set(others[:2])
            async with asking(group.daemons, each_seconds=0.02) as asked:
                await asyncio.to_thread(network.partition, side)
                await _watch(group, leaders, CUT_SECONDS)
            asked_all += asked
            await asyncio.to_thread(network.heal)
            begun = time.monotonic()
            await group.settled(DAEMONS)
            await asyncio.gather(*(committed(one, "healed", f"{index}/{one.name}") for one in group.daemons))
            heals.append(time.monotonic() - begun)
            await _watch(group, leaders, 0.2)
    for epoch, names in leaders.items():
        assert len(names) == 1, f"epoch {epoch} had the leaders {names}"
    return heals, asked_all


async def _watch(group: Fleet, leaders: defaultdict[int, set[str]], seconds: float) -> None:
    """Note whom everybody calls leader of which epoch."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for body in await asyncio.gather(*(_members(one) for one in group.daemons)):
            if body.get("leader"):
                leaders[body["epoch"]].add(body["leader"])
        await asyncio.sleep(0.2)


async def _members(daemon: Any) -> dict[str, Any]:
    try:
        _, body = await daemon.ask("GET", "/sllmd/v1/members", seconds=2)
    except (aiohttp.ClientError, TimeoutError):
        return {}
    found: dict[str, Any] = body
    return found

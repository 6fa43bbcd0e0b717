"""The leader is killed with SIGKILL under the load of bursts, once per round.

Requests go through the others from the moment it is dead. One counts as failed when its router lives and it
did not run on the killed node; those that ran there are in the rows. Placements have resumed when a survivor
is told a plan by a new leader, which has asked all nodes what they have by then.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Goal, Report
from benchmarks.scheduler.load import NAMES, NODES, Played, Player, explained, loaded_stage, trace
from tests.storm.fleet import Daemon, Fleet

GOALS = (
    Goal("scheduler.failover_failed", "requests", "<=", 0),
    Goal("scheduler.failover_s", "s", "<=", 3),
)
BEFORE_SECONDS, AFTER_SECONDS = 8.0, 12.0
"""Of each kill, under load."""
FEW_AT_ONCE = 1.5
"""Coefficient of variation: with that of the bursts, most of so short a time would be silence."""


def measure(report: Report, options: Options) -> None:
    """All kills on one cluster."""
    asyncio.run(_measure(report, options.rounds))


async def _measure(report: Report, rounds: int) -> None:
    resumed: list[float] = []
    failed, there, asked = [], [], []
    async with loaded_stage() as group:
        for number in range(rounds):
            seconds, judged = await _kill(group, number)
            resumed.append(seconds)
            failed.append(sum(1 for one in judged if one.failure and not one.was_there))
            there.append(sum(1 for one in judged if one.failure and one.was_there))
            asked.append(len(judged))
            for one in judged:
                if one.failure:
                    log(f"failover {number}: {one}")
    report.row("placements resume after kill -9 of the leader", resumed, "s")
    report.row("requests per kill whose router lives", asked, "requests")
    report.row("failed ones per kill, router and replica live", failed, "requests")
    report.row("failed ones per kill, replica killed", there, "requests")
    report.value("scheduler.failover_failed", [sum(failed)], 1)
    report.value("scheduler.failover_s", [max(resumed)] * rounds, rounds)


class _Judged:
    """A request whose router lives."""

    def __init__(self, one: Played, told: dict[str, Any], killed: str) -> None:
        self.failure = one.failure
        ran_on = told.get("node", "")
        hops = [move.get("source") for move in told.get("moves", [])]
        self.was_there = killed in (ran_on, *hops)
        self._told = told

    def __str__(self) -> str:
        return f"{self.failure} {self._told}"


async def _kill(group: Fleet, number: int) -> tuple[float, list[_Judged]]:
    leader = await group.leader()
    survivors = [daemon for daemon in group.daemons if daemon is not leader]
    killed = await _id_of(leader)
    player = Player(group)
    routers = list(group.daemons)
    arrivals = trace(BEFORE_SECONDS + AFTER_SECONDS, 100 + number, FEW_AT_ONCE)
    playing = asyncio.create_task(player.play(arrivals, lambda: routers))
    await asyncio.sleep(BEFORE_SECONDS)
    leader.kill()
    killed_at = time.monotonic()
    routers.remove(leader)
    seconds = await _resumed(survivors, killed, killed_at)
    await playing
    told = await explained(survivors)
    judged = [
        _Judged(one, told.get(one.request_id, {}), killed)
        for one in player.played
        if one.router is not leader
    ]
    leader.start()
    await leader.serves()
    await group.settled(NODES - 1)
    return seconds, judged


async def _id_of(daemon: Daemon) -> str:
    _, said = await daemon.ask("GET", "/sllmd/v1/members")
    return str(next(member["id"] for member in said["members"] if member["is_me"]))


async def _resumed(survivors: list[Daemon], killed: str, since: float) -> float:
    """Seconds until somebody else plans."""
    turn = 0
    while True:
        daemon = survivors[turn % len(survivors)]
        turn += 1
        try:
            path = f"/sllmd/v1/models/{NAMES[0]}/plan"
            status, said = await daemon.ask("GET", path, seconds=1)
        except (aiohttp.ClientError, TimeoutError):
            status, said = 0, None
        if status == 200 and said["plan"]["leader"] != killed and said["plan"]["ways"]:
            return time.monotonic() - since
        if time.monotonic() > since + 60:
            raise RuntimeError(f"nobody plans: {said}\n{daemon.log()}")
        await asyncio.sleep(0.01)

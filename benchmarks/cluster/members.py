"""What a thousand known members add to a real daemon: told over the stream, then a packet from each."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.cluster.fleets import a_fleet
from benchmarks.cluster.options import Options
from benchmarks.report import Goal, Report
from benchmarks.servers import resident_bytes
from sllmd.cluster.home import Home
from sllmd.core.ids import NodeId
from tests.cluster.crowd import AT_ONCE, introduce
from tests.storm.fleet import Daemon

GOALS = (Goal("cluster.members_rss_mb", "MB", "<=", 30),)
MEMBERS = 1000
READ_SECONDS = AT_ONCE / 1000
"""Given to a daemon to read a handful of packets: it does ten times as many in that time."""


def measure(report: Report, options: Options) -> None:
    """A fresh daemon in each round."""
    grown = [asyncio.run(_grown()) / 1e6 for _ in range(options.rounds)]
    report.row(f"{MEMBERS} members: added to a daemon", grown, "MB")
    report.value("cluster.members_rss_mb", grown, options.rounds)


async def _grown() -> int:
    async with a_fleet(1, 1, holders=[]) as group:
        [daemon] = group.daemons
        body = await _members(daemon)
        [me] = body["members"]
        keyring = Home(daemon.directory / "data" / "cluster").keyring()
        assert keyring is not None, "a founder has a keyring"
        before = resident_bytes(daemon.pid)
        await introduce(
            keyring,
            body["cluster_id"],
            NodeId(me["id"]),
            me["gossip_address"],
            MEMBERS,
            taken=lambda _: asyncio.sleep(READ_SECONDS),
        )
        for _ in range(20):  # as a person does who looks
            known = len((await _members(daemon))["members"])
        assert known == MEMBERS + 1, f"only {known} members are known"
        return resident_bytes(daemon.pid) - before


async def _members(daemon: Daemon) -> Any:
    return (await daemon.ask("GET", "/sllmd/v1/members"))[1]

"""Watches this node and its cluster, and records what happens: the source of ``sllmd events``.

Every node records its own view: what one learns first, another learns later, and a node that was cut off
records that. What happened is decided by ``happenings``; here it is only noticed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from sllmd.cluster.node import ClusterNode
from sllmd.core.ids import NodeId
from sllmd.roles.agent import Agent
from sllmd.roles.carriage import Carriage
from sllmd.roles.happenings import (
    Happening,
    Lead,
    NameOf,
    of_catalogue,
    of_leadership,
    of_member,
    of_move,
    of_refusal,
    of_replica,
    of_stream,
)
from sllmd.roles.members import name_table
from sllmd.roles.mirror import Mirror, Outcome
from sllmd.roles.mover import Mover
from sllmd.roles.passage import Passage
from sllmd.roles.residence import Residence
from sllmd.roles.residences import ReplicaChange
from sllmd.telemetry.feed import Feed
from sllmd.telemetry.supervising import end_tasks, keep_running


def record(feed: Feed, happening: Happening) -> None:
    """Put it where it can be followed."""
    feed.add({"kind": happening.kind, "text": happening.text, **happening.facts})


def watch_replicas(feed: Feed, agent: Agent, node: str) -> None:
    """From now on, the lives of the replicas of this node, called ``node``."""

    def observe(residence: Residence, change: ReplicaChange, reason: str | None) -> None:
        name, devices = residence.checkpoint.name, residence.devices
        record(feed, of_replica(node, name, residence.replica_id, devices, change, reason))

    agent.observers.append(observe)


def watch_moves(feed: Feed, mover: Mover, name_of: NameOf) -> None:
    """From now on, what changes its place among the generations of this node's router."""

    def observe(carriage: Carriage, passage: Passage) -> None:
        work = carriage.work
        record(feed, of_move(work.request_id, work.model, passage.status(), name_of))

    mover.observers.append(observe)


def watch_mirror(feed: Feed, mirror: Mirror, node: str) -> None:
    """From now on, what becomes of the streams of this node, called ``node``; what comes by the token is
    only counted."""

    def observe(outcome: Outcome) -> None:
        happening = of_stream(node, outcome)
        if happening is not None:
            record(feed, happening)

    mirror.observers.append(observe)


def watch_door(feed: Feed, cluster: ClusterNode) -> None:
    """Who is not let in, from the node's start on."""
    cluster.on_refused = lambda name, address, reason: record(feed, of_refusal(name, address, reason))


class Watcher:
    """Follows members, leadership and catalogue from ``start`` to ``close``."""

    def __init__(self, feed: Feed, cluster: ClusterNode) -> None:
        self._feed = feed
        self._cluster = cluster
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """From what is known now on; the node has joined."""
        self._tasks = [
            keep_running(self._follow_members),
            keep_running(self._follow_leadership),
            keep_running(self._follow_catalogue),
        ]

    async def close(self) -> None:
        """Stop."""
        await end_tasks(*self._tasks)

    async def _follow_members(self) -> None:
        changes = self._cluster.membership.changed()
        seen = {view.node: view for view in self._cluster.membership.members()}
        async for change in changes:
            before = seen.pop(change.node, None)
            if change.member is not None:
                seen[change.node] = change.member
            self._record(of_member(before, change.member, self.name))

    async def _follow_leadership(self) -> None:
        changes = self._cluster.control.leaderships()
        changes.put(self._cluster.control.leadership())
        before: Lead = (0, None)
        async for leadership in changes:
            now = (leadership.epoch, leadership.leader)
            self._record(of_leadership(before, now, self.name))
            before = now

    async def _follow_catalogue(self) -> None:
        changes = self._cluster.control.views()
        before = self._cluster.control.view().catalogue
        async for view in changes:
            self._record(of_catalogue(before, view.catalogue, self.name))
            before = view.catalogue

    def _record(self, happened: Iterable[Happening]) -> None:
        for happening in happened:
            record(self._feed, happening)

    def name(self, node: NodeId) -> str:
        """What people call a node."""
        names = name_table(self._cluster.membership.members(), self._cluster.control.view().catalogue)
        return names.get(node, node)

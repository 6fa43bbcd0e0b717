"""This node leaves the cluster for good: its work ends, its duties go over, it is no member any more.

1. Nothing is begun that could not be ended: a cluster that cannot agree now refuses before anything stops.
2. No new work; what runs moves to other nodes, or has the drain's time.
3. The cluster agrees that this node is none of it: leadership and vote go over first.
4. The daemon ends. Its data stay, and belong to nobody: a later start joins, or founds, anew.
"""

from __future__ import annotations

import asyncio

import structlog

from sllmd.core.errors import Conflict, SllmdError
from sllmd.roles.agent import Agent
from sllmd.roles.draining import Draining
from sllmd.roles.fleet import Fleet
from sllmd.roles.happenings import Happening
from sllmd.roles.status import LeaveReport
from sllmd.roles.watching import record
from sllmd.telemetry.feed import Feed

_log = structlog.get_logger(__name__)


class Departure:
    """The way out. ``left`` is set once this node is a member no more: the daemon then stops."""

    def __init__(
        self, fleet: Fleet, agent: Agent, draining: Draining, events: Feed, drain_seconds: float
    ) -> None:
        self.left = asyncio.Event()
        self._fleet = fleet
        self._agent = agent
        self._draining = draining
        self._events = events
        self._drain_seconds = drain_seconds
        self._leaving: asyncio.Task[LeaveReport] | None = None

    async def leave(self, drain_seconds: float | None = None) -> LeaveReport:
        """Go; what it cost. Who asks again meanwhile gets the same answer, who stops asking stops nothing.

        Raises Conflict for the only node and where most voters are dead, ControlUnavailable and
        OutcomeUnknown when the cluster cannot agree: then this node takes work again.
        """
        if self._leaving is None:
            seconds = self._drain_seconds if drain_seconds is None else drain_seconds
            self._leaving = asyncio.get_running_loop().create_task(self._leave(seconds))
            self._leaving.add_done_callback(self._ended)
        return await asyncio.shield(self._leaving)

    def _ended(self, leaving: asyncio.Task[LeaveReport]) -> None:
        if leaving.cancelled() or leaving.exception() is not None:
            self._leaving = None  # so that it can be tried again

    async def _leave(self, drain_seconds: float) -> LeaveReport:
        cluster = self._fleet.cluster
        name = cluster.identity.name
        self._fleet.require_majority()
        await cluster.control.read()
        if not cluster.members_here():
            raise Conflict(
                f"no other node is here that could go on without {name}",
                hint="stop its daemon instead; its data stay",
            )
        record(self._events, Happening("node.leaving", f"{name} leaves: no new work", {"node": name}))
        _log.info("leaving the cluster", drain_seconds=drain_seconds)
        async for step in self._draining.empty(drain_seconds):
            cut_short = step.left
        try:
            await cluster.leave()
        except SllmdError as error:
            self._agent.resume()
            record(self._events, Happening("node.stays", f"{name} could not leave: {error}", {"node": name}))
            raise
        record(self._events, Happening("node.left", f"{name} left the cluster", {"node": name}))
        self.left.set()
        return LeaveReport(node=name, left=True, cut_short=cut_short)

"""What an operator turns to about the cluster, in one place: there once this node has joined."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from sllmd.cluster.node import ClusterNode
from sllmd.core.ids import NodeId
from sllmd.roles.agent import Agent
from sllmd.roles.asking import Asking
from sllmd.roles.departure import Departure
from sllmd.roles.draining import Draining
from sllmd.roles.fleet import Fleet, Inventories
from sllmd.roles.following import Following, remote_events, remote_logs
from sllmd.roles.status import DrainStep, MemberStatus
from sllmd.roles.steering import Steering
from sllmd.telemetry.feed import Entry, Place
from sllmd.telemetry.tap import LogFilter


@dataclass(frozen=True, slots=True)
class ClusterDesk:
    """See, change, leave, follow, ask whoever leads."""

    fleet: Fleet
    steering: Steering
    departure: Departure
    following: Following
    draining: Draining
    asking: Asking

    async def drain(
        self, node: str, deadline_seconds: float, *, moves: bool
    ) -> AsyncGenerator[DrainStep, None]:
        """Empty a node. Raises RecordNotFound, ControlUnavailable, OutcomeUnknown, PeerError."""
        member = self.fleet.find(node)
        steps = (
            self.draining.drain(deadline_seconds, moves=moves)
            if member.is_me
            else self.draining.drain_there(NodeId(member.id), deadline_seconds, moves=moves)
        )
        async with aclosing(steps):
            async for step in steps:
                yield step

    async def undrain(self, node: str) -> MemberStatus:
        """A node takes work again. Raises the same."""
        member = self.fleet.find(node)
        if member.is_me:
            await self.draining.undrain()
        else:
            await self.draining.undrain_there(NodeId(member.id))
        return member

    def events(self, node: str, place: Place, *, follow: bool = True) -> AsyncGenerator[Entry, None]:
        """The events of a node, as that node sees them. Raises RecordNotFound; while iterating, PeerError."""
        member = self.fleet.find(node)
        if member.is_me:
            return self.following.events(place, follow=follow)
        return remote_events(self.fleet.cluster.connection, NodeId(member.id), place, follow=follow)

    def logs(
        self, node: str, place: Place, wanted: LogFilter, *, follow: bool = True
    ) -> AsyncGenerator[Entry, None]:
        """The log of a node. Raises RecordNotFound; while iterating, PeerError."""
        member = self.fleet.find(node)
        if member.is_me:
            return self.following.logs(place, wanted, follow=follow)
        return remote_logs(self.fleet.cluster.connection, NodeId(member.id), place, wanted, follow=follow)


def open_desk(
    cluster: ClusterNode,
    agent: Agent,
    following: Following,
    inventories: Inventories,
    draining: Draining,
    drain_seconds: float,
    asking: Asking,
) -> ClusterDesk:
    """The desk of a node that has joined."""
    fleet = Fleet(cluster, inventories)
    departure = Departure(fleet, agent, draining, following.feed, drain_seconds)
    return ClusterDesk(fleet, Steering(fleet, asking.retire), departure, following, draining, asking)

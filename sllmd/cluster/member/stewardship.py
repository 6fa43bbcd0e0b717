"""The leader looks after the membership: who is well, who catches up, and the policy's next step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import structlog

from sllmd.cluster.member.links import Links
from sllmd.cluster.member.settings import VoterSettings
from sllmd.cluster.member.shell import Shell
from sllmd.cluster.member.voters import Change, HandOver, Standing, Step, best_voter, next_step
from sllmd.cluster.raft.entries import Membership
from sllmd.cluster.raft.events import Role
from sllmd.core.errors import SllmdError
from sllmd.core.ids import NodeId

_log = structlog.get_logger(__name__)

ROUND_SECONDS_MAX = 1.0
"""Between two looks; shorter where nodes settle faster."""
HEARD_SECONDS = 3.0
"""A member that answered within this time is well: raft notes answers in windows of one election time-out."""
RETIRING_SECONDS = 10.0
"""A node that wants to go says so again and again; one that stopped saying it stays."""


class _Health:
    """Since when a node has been well, or not."""

    def __init__(self, now: float) -> None:
        self.heard_at = now
        self.well_since: float | None = None
        self.silent_since: float | None = None

    def note(self, now: float, *, well: bool) -> None:
        self.well_since = (self.well_since or now) if well else None
        self.silent_since = None if well else (self.silent_since or now)


class Steward:
    """Runs on every node and acts on the one that leads."""

    def __init__(
        self,
        node: NodeId,
        links: Links,
        alive: Callable[[], Collection[NodeId]],
        settings: VoterSettings,
        shell: Callable[[], Shell | None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._node = node
        self._links = links
        self._alive = alive
        self._settings = settings
        self._shell = shell
        self._health: dict[NodeId, _Health] = {}
        self._seen: set[NodeId] = set()
        """Nodes that stood in the catalogue while this node led: one that no longer does was removed."""
        self._led_since: float | None = None
        self._retiring: dict[NodeId, float] = {}
        self._told: Membership | None = None

    def retiring(self, node: NodeId) -> None:
        """This node wants to be a member no more."""
        self._retiring[node] = self._loop.time() + RETIRING_SECONDS

    async def run(self) -> None:
        """For ever."""
        round_seconds = min(ROUND_SECONDS_MAX, self._settings.settle_seconds / 4)
        while True:
            shell = self._shell()
            if shell is None or not shell.leads:
                self._health, self._seen, self._led_since, self._told = {}, set(), None, None
            elif await self._look(shell):
                continue
            await asyncio.sleep(round_seconds)

    async def hand_over(self) -> bool:
        """Give the leadership to the best voter; whether it went."""
        shell = self._shell()
        if shell is None or shell.raft.role is not Role.LEADER:
            return False
        target = best_voter(shell.raft.membership, self._node, self._standings(shell))
        return target is not None and await self._transfer(shell, target)

    # --- one look ---

    async def _look(self, shell: Shell) -> bool:
        """Take one step; whether one was taken."""
        status = shell.status()
        if not status.membership_committed or not shell.raft.own_term_committed:
            return False
        await self._tell_removed(status.membership, shell.raft.log.membership_index)
        if not len(shell.catalogue.nodes):
            return False  # founding is not over
        step = next_step(status.membership, self._node, self._standings(shell), self._settings)
        return step is not None and await self._take(shell, step)

    async def _take(self, shell: Shell, step: Step) -> bool:
        match step:
            case Change(members, reason):
                refusal = shell.change(members)
                _log.info(
                    "changing who votes",
                    voters=list(members.voters),
                    standbys=list(members.learners),
                    reason=reason,
                    refused=None if refusal is None else str(refusal),
                )
                return refusal is None and await self._committed(shell)
            case HandOver(target, reason):
                _log.info("handing over the leadership", to=target, reason=reason)
                return await self._transfer(shell, target)

    async def _committed(self, shell: Shell) -> bool:
        """Wait for the change under way; False: this node leads no longer, or it takes long."""
        until = self._loop.time() + self._settings.dead_seconds
        while shell.leads and self._loop.time() < until:
            if shell.status().membership_committed:
                return True
            await shell.changed.wait(ROUND_SECONDS_MAX)
        return False

    async def _transfer(self, shell: Shell, target: NodeId) -> bool:
        shell.transfer(target)
        while shell.raft.transfer_target is not None:
            await shell.changed.wait(ROUND_SECONDS_MAX)
        if shell.raft.role is Role.LEADER:
            return False
        while shell.raft.leader is None and shell.age_seconds < ROUND_SECONDS_MAX:
            await shell.changed.wait(ROUND_SECONDS_MAX)
        return True

    async def _tell_removed(self, members: Membership, index: int) -> None:
        """Nobody sends anything to a node that is no member any more: say it once, it asks otherwise."""
        gone = set(self._told.everyone) - set(members.everyone) if self._told is not None else set()
        self._told = members
        for node in sorted(gone & set(self._alive())):
            try:
                connection = await self._links.connection(node)
            except SllmdError:
                continue
            connection.note("control.removed", (index, members.voters, members.learners))

    # --- what is seen ---

    def _standings(self, shell: Shell) -> dict[NodeId, Standing]:
        now = self._loop.time()
        self._led_since = self._led_since or now
        status, nodes = shell.status(), shell.catalogue.nodes
        peers = {peer.node: peer for peer in status.peers}
        registered = {record.node: record.labels for record in nodes.values()}
        self._seen |= registered.keys()
        alive = {*self._alive(), self._node}
        standings = {}
        for node in {*registered, *status.membership.everyone}:
            peer = peers.get(node)
            health = self._health.setdefault(node, _Health(now))
            if peer is None or peer.heard:
                health.heard_at = now
            health.note(now, well=node in alive and now - health.heard_at < HEARD_SECONDS)
            standings[node] = Standing(
                node=node,
                zone=registered.get(node, {}).get(self._settings.spread_label, ""),
                belongs=self._belongs(node, node in registered, now),
                well_seconds=now - health.well_since + 1e-9 if health.well_since else 0.0,
                silent_seconds=now - health.silent_since if health.silent_since else 0.0,
                lag_entries=0 if node == self._node else peer.lag_entries if peer else None,
            )
        return standings

    def _belongs(self, node: NodeId, registered: bool, now: float) -> bool:
        if self._retiring.get(node, 0.0) > now:
            return False
        assert self._led_since is not None
        # A founder has as long as any node to settle until it stands in the catalogue.
        is_new = node not in self._seen and now - self._led_since < self._settings.settle_seconds
        return registered or is_new

"""What a claim to be alive does to the table: the order of incarnations, compatibility, contested ids. Pure.

Of two things said about a member, the one about the higher incarnation wins, and of one incarnation
the graver. Only the member raises its incarnation, so its own word, given in answer, is always the last.
"""

from __future__ import annotations

from dataclasses import replace

from sllmd.cluster.gossip.core import Core, Start
from sllmd.cluster.gossip.events import IdTaken, Incompatible, NameTaken
from sllmd.cluster.gossip.members import Member
from sllmd.cluster.gossip.messages import Alive, Conflict, Status
from sllmd.core.ids import NodeId

CONTESTED_MAX = 64
"""Ids whose holder is being asked whether it still lives; more at once is no accident."""
REPORTED_MAX = 1_024
"""Incompatible nodes remembered as reported; beyond it they are reported again."""


def outranks(incarnation: int, status: Status, member: Member) -> bool:
    """Whether this, said of ``member``, is news."""
    return (incarnation, status) > (member.incarnation, member.status)


class Rules(Core):
    """Hears ``Alive``."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.contested: dict[NodeId, Alive] = {}
        """Claims to an id that another holds, until the holder answers or dies."""
        self._reported: dict[NodeId, int] = {}

    def hear_alive(self, claim: Alive) -> None:
        """A node says that it lives. Numbers as in the list below.

        1 it is this node: something else must be said of it. 2 nothing new: most of what gossip brings.
        3 it speaks none of our versions: ignore. 4 unknown: a new member. 5 another address than that of a
        member still here: ask the holder. 6 a higher incarnation: believe it. 7 what a later status was said
        about: only what it tells is new.
        """
        if claim.node == self.node:  # 1
            self._hear_alive_of_me(claim)
            return
        member = self.table.get(claim.node)
        if member is not None and claim.incarnation <= member.claim.incarnation:  # 2
            return
        if not self.compatible(claim):  # 3
            return
        if member is None:  # 4
            self._accept(Member(claim, claim.incarnation, Status.ALIVE, self.now))
        elif claim.address != member.address and member.here:  # 5
            if claim.incarnation > member.incarnation:
                self._contest(claim, member)
        elif claim.incarnation > member.incarnation:  # 6
            since_seconds = member.since_seconds if member.status is Status.ALIVE else self.now
            self._accept(Member(claim, claim.incarnation, Status.ALIVE, since_seconds))
        else:  # 7
            self._accept(replace(member, claim=claim))

    def hear_conflict(self, conflict: Conflict) -> None:
        """Somebody asked the holder of this node's id, and it answered."""
        if conflict.node != self.node or conflict.address == self.me.address or self.leaving:
            return
        settled = self.now - self.born >= self.settings.settle_seconds
        if not settled or conflict.address < self.me.address:
            self.act(IdTaken(conflict.address))

    def compatible(self, claim: Alive) -> bool:
        """Whether there is a version that both sides speak; a node without one is reported once."""
        reason = self.incompatibility(claim)
        if reason is None:
            return True
        if self._reported.get(claim.node) != claim.incarnation:
            if len(self._reported) >= REPORTED_MAX:
                self._reported.clear()
            self._reported[claim.node] = claim.incarnation
            self.act(Incompatible(claim.node, claim.name, claim.address, reason))
        return False

    def incompatibility(self, claim: Alive) -> str | None:
        """Why the two cannot talk, or None."""
        if claim.protocol_min <= self.me.protocol_max and self.me.protocol_min <= claim.protocol_max:
            return None
        return (
            f"{claim.name} speaks gossip {claim.protocol_min} to {claim.protocol_max}, "
            f"{self.me.name} {self.me.protocol_min} to {self.me.protocol_max}"
        )

    def refute(self, incarnation: int) -> None:
        """Say something newer about this node than what is being said."""
        self.announce(replace(self.me, incarnation=max(incarnation, self.me.incarnation) + 1))

    def announce(self, claim: Alive) -> None:
        """Make this node's new claim, here and to everybody."""
        self.me = claim
        before = self.table.get(self.node)
        assert before is not None, "a node is in its own table"
        self.believe(Member(claim, claim.incarnation, Status.ALIVE, before.since_seconds))
        self.tell(claim)

    def release(self, node: NodeId) -> None:
        """The holder of this id is here no more: who else claimed it may have it."""
        claim = self.contested.pop(node, None)
        if claim is not None:
            self.hear_alive(claim)

    def on_contested(self, holder: Member) -> None:
        """Somebody else claims this member's id; higher floors ask the member."""

    def _hear_alive_of_me(self, claim: Alive) -> None:
        """A former life of this node, or a clone: either way this claim must become the newer one."""
        if claim != self.me and claim.incarnation >= self.me.incarnation and not self.leaving:
            self.refute(claim.incarnation)

    def _contest(self, claim: Alive, holder: Member) -> None:
        if claim.node in self.contested or len(self.contested) < CONTESTED_MAX:
            self.contested[claim.node] = claim
            self.on_contested(holder)

    def _accept(self, member: Member) -> None:
        before = self.table.get(member.node)
        self.believe(member)
        if member.status is Status.ALIVE:
            self.tell(member.claim)
        if member.here and (before is None or not before.here or before.claim.name != member.claim.name):
            self._check_name(member)

    def _check_name(self, member: Member) -> None:
        other = self.table.namesake(member)
        if other is not None:
            keeper, loser = sorted((member.node, other.node))
            self.act(NameTaken(member.claim.name, keeper, loser))

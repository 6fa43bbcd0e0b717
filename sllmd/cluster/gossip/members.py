"""The table: every member this node knows, and what it believes of each. Pure.

Also the order in which members are probed: round robin over a shuffled ring, so that each is probed within
one turn of it (SWIM §4.3), a newcomer anywhere in the rest of the turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sllmd.cluster.gossip.chance import Chance
from sllmd.cluster.gossip.messages import Alive, Fact, Status
from sllmd.core.ids import NodeId

DRAWS_PER_MEMBER = 4
"""Random picks before giving up to find one more that fits: most members of a cluster are alive."""


@dataclass(frozen=True, slots=True)
class Member:
    """``incarnation`` and ``status`` are the newest heard; ``since_seconds`` (this node's clock) is when the
    status last changed."""

    claim: Alive
    incarnation: int
    status: Status
    since_seconds: float

    @property
    def node(self) -> NodeId:
        """Its id."""
        return self.claim.node

    @property
    def address(self) -> str:
        """Where it gossips."""
        return self.claim.address

    @property
    def here(self) -> bool:
        """Whether it counts: alive, or not yet given up."""
        return self.status <= Status.SUSPECT

    def fact(self) -> Fact:
        """As it stands in an exchanged table."""
        return Fact(self.claim, self.incarnation, self.status)


class Table:
    """Members by id, this node among them. ``known`` is taken over without being looked at."""

    def __init__(self, me: NodeId, known: Mapping[NodeId, Member], chance: Chance) -> None:
        self._me = me
        self._members = dict(known)
        self._chance = chance
        self._ring = list(self._members)
        self._next = chance.below(len(self._ring)) if self._ring else 0
        self._names: dict[str, NodeId] | None = None
        self.members: Mapping[NodeId, Member] = MappingProxyType(self._members)
        self.unwell = [member for member in self._members.values() if member.status]
        """Of those taken over, who is not simply alive."""
        self.here_count = len(self._members) - sum(not member.here for member in self.unwell)
        self.dead = {member.node for member in self.unwell if member.status is Status.DEAD}

    def get(self, node: NodeId) -> Member | None:
        """The member of this id, if it is known."""
        return self._members.get(node)

    def put(self, member: Member) -> Member | None:
        """Replace what is believed; returns what was believed before."""
        before = self._members.get(member.node)
        self._members[member.node] = member
        self.here_count += member.here - (before is not None and before.here)
        if member.status is Status.DEAD:
            self.dead.add(member.node)
        else:
            self.dead.discard(member.node)
        if before is None and member.node != self._me:
            self._insert(member.node)
        if self._names is not None:
            self._rename(before, member)
        return before

    def remove(self, node: NodeId) -> None:
        """Forget a member. Its place in the ring is given up when its turn comes."""
        member = self._members.pop(node)
        self.here_count -= member.here
        self.dead.discard(node)
        if self._names is not None and self._names.get(member.claim.name) == node:
            del self._names[member.claim.name]

    def next_to_probe(self) -> Member | None:
        """The next one here in the ring, this node excepted; None if there is no other."""
        for _ in range(len(self._ring)):
            if self._next >= len(self._ring):
                self._turn()
            node = self._ring[self._next]
            self._next += 1
            member = self._members.get(node)
            if member is not None and member.here and node != self._me:
                return member
        return None

    def sample(self, count: int, fits: Callable[[Member], bool]) -> list[Member]:
        """Up to ``count`` different random members that fit, never this node."""
        chosen: dict[NodeId, Member] = {}
        if len(self._ring) <= DRAWS_PER_MEMBER * count:
            everyone = list(self._ring)
            self._chance.shuffle(everyone)
            candidates: Iterator[NodeId] = iter(everyone)
        else:
            draws = DRAWS_PER_MEMBER * count
            candidates = (self._ring[self._chance.below(len(self._ring))] for _ in range(draws))
        for node in candidates:
            if len(chosen) == count:
                break
            member = self._members.get(node)
            if member is not None and node != self._me and fits(member):
                chosen[node] = member
        return list(chosen.values())

    def sample_dead(self, count: int) -> list[Member]:
        """Up to ``count`` random members believed dead."""
        if len(self.dead) <= count:
            return [self._members[node] for node in sorted(self.dead)]
        dead = sorted(self.dead)
        return [self._members[dead[self._chance.below(len(dead))]] for _ in range(count)]

    def namesake(self, member: Member) -> Member | None:
        """Another member here under the same name."""
        if self._names is None:
            others = (one for one in self._members.values() if one.here and one.node != member.node)
            self._names = {one.claim.name: one.node for one in others}
        holder = self._names.get(member.claim.name)
        if holder is None or holder == member.node:
            self._names[member.claim.name] = member.node
            return None
        return self._members[holder]

    def _rename(self, before: Member | None, after: Member) -> None:
        assert self._names is not None
        if before is None or not before.here or (after.here and before.claim.name == after.claim.name):
            return
        if self._names.get(before.claim.name) == before.node:
            del self._names[before.claim.name]

    def _insert(self, node: NodeId) -> None:
        """At a random place: one that joins must not always be probed last."""
        self._ring.append(node)
        place, last = self._chance.below(len(self._ring)), len(self._ring) - 1
        self._ring[place], self._ring[last] = self._ring[last], self._ring[place]

    def _turn(self) -> None:
        """Begin a new turn in a new order, without those that were forgotten."""
        self._ring = [node for node in self._ring if node in self._members]
        self._chance.shuffle(self._ring)
        self._next = 0

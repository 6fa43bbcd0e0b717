"""What raft writes down: entries, the hard state, memberships, and what a snapshot stands for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from sllmd.cluster.codec import Codec
from sllmd.core.ids import NodeId

INCARNATION_BITS = 32
"""An epoch is the cluster's incarnation, then the term of an election in it: no incarnation has more."""


def incarnation(term: int) -> int:
    """How often the cluster had gone on from one node's log (``member.recovery``) before this term."""
    return term >> INCARNATION_BITS


class EntryKind(IntEnum):
    """What an entry's data means, and to whom."""

    NOOP = 0
    """A leader's first entry: once it is committed, so is everything before it (§5.4.2, §8)."""
    COMMAND = 1
    """Bytes for the state machine; raft does not look inside."""
    MEMBERSHIP = 2
    """A whole new membership, in force from the moment it stands in a log (thesis §4.1)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One place in the log."""

    index: int
    term: int
    kind: EntryKind
    data: bytes


@dataclass(frozen=True, slots=True)
class HardState:
    """What a node must remember over a crash besides its log: forget it, and it may vote twice."""

    term: int
    vote: NodeId | None


@dataclass(frozen=True, slots=True)
class Membership:
    """Who votes and who only listens. Both are sorted, so that equal memberships are equal bytes."""

    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...] = ()

    @property
    def quorum(self) -> int:
        """The smallest number of voters that any two majorities must share one of."""
        return len(self.voters) // 2 + 1

    @property
    def everyone(self) -> tuple[NodeId, ...]:
        """Voters, then learners."""
        return self.voters + self.learners

    def with_voter(self, node: NodeId) -> Membership:
        """The node votes, whatever it was before."""
        return membership({*self.voters, node}, set(self.learners) - {node})

    def with_learner(self, node: NodeId) -> Membership:
        """The node listens and does not vote, whatever it was before."""
        return membership(set(self.voters) - {node}, {*self.learners, node})

    def without(self, node: NodeId) -> Membership:
        """The node is neither."""
        return membership(set(self.voters) - {node}, set(self.learners) - {node})

    def is_one_step_from(self, other: Membership) -> bool:
        """At most one voter comes or goes, so that majorities of both must overlap (thesis §4.1)."""
        return bool(self.voters) and len(set(self.voters) ^ set(other.voters)) <= 1


def membership(voters: set[NodeId], learners: set[NodeId]) -> Membership:
    """A membership in its one canonical form."""
    return Membership(tuple(sorted(voters)), tuple(sorted(learners)))


NOBODY = Membership(())
"""The membership of a node that has not heard of any cluster yet."""


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """A snapshot of the state machine after ``index``, in place of all entries up to there."""

    index: int
    term: int
    membership: Membership
    size_bytes: int
    checksum: int
    """xxh3-64 of its bytes: two snapshots are the same only if all of this is."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a journal found: where a raft node takes up again."""

    hard_state: HardState
    snapshot: SnapshotMeta | None
    entries: tuple[Entry, ...]
    commit: int = 0
    """So far it is known that entries are agreed. Raft does not need it (its figure 2 lets it be forgotten);
    with it a member that finds no majority after a restart knows what it knew before."""


NOTHING = Restored(HardState(0, None), None, ())
"""A node with an empty disk that waits to be taken in by a leader."""

_CODEC = Codec({1: Membership})


def encode_membership(members: Membership) -> bytes:
    """The data of a MEMBERSHIP entry."""
    return _CODEC.pack(members)


def decode_membership(data: bytes) -> Membership:
    """The inverse; raises ProtocolError."""
    members = _CODEC.unpack(data)
    assert isinstance(members, Membership)
    return members


def founding(members: Membership) -> Restored:
    """A new cluster's first journal: the same on every founder, so that they agree before they talk.

    The shell makes it durable before it starts the machine.
    """
    first = Entry(1, 1, EntryKind.MEMBERSHIP, encode_membership(members))
    return Restored(HardState(1, None), None, (first,))


def forced(restored: Restored, node: NodeId) -> tuple[HardState, tuple[Entry, ...]]:
    """What to write behind a journal so that its node goes on alone, when a majority is lost for good.

    Everything in the journal is taken as agreed, committed or not: that is the risk which an operator takes.
    """
    last = (
        restored.entries[-1].index
        if restored.entries
        else restored.snapshot.index
        if restored.snapshot
        else 0
    )
    term = restored.hard_state.term + 1
    alone = encode_membership(membership({node}, set()))
    return HardState(term, None), (Entry(last + 1, term, EntryKind.MEMBERSHIP, alone),)

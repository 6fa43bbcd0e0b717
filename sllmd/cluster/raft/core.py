"""What every part of the machine shares: who this node is, its term, vote and role, its log, its clock. Pure.

The machine is built in floors, each one file and one subject: ``Core`` -> ``Snapshots`` -> ``Replication``
-> ``Reads`` -> ``Handover`` -> ``Changes`` -> ``Election`` -> ``Raft``. A floor may call only floors below
it; what a lower floor lets a higher one add to (``step_down``, ``on_commit``) is extended by overriding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sllmd.cluster.raft.entries import HardState, Membership, Restored
from sllmd.cluster.raft.events import LeadershipChanged, MembershipChanged, Role
from sllmd.cluster.raft.log import RaftLog
from sllmd.cluster.raft.outbox import Outbox
from sllmd.cluster.raft.progress import Progress
from sllmd.cluster.raft.settings import RaftSettings
from sllmd.core.ids import NodeId

NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Start:
    """What a machine begins with. ``nonce`` is drawn anew for each life of a node."""

    node: NodeId
    settings: RaftSettings
    restored: Restored
    now_seconds: float
    jitter: float
    nonce: int


class Core:
    """State, and the few things that all parts do to it."""

    def __init__(self, start: Start) -> None:
        restored = start.restored
        self.node = start.node
        self.settings = start.settings
        self.term = restored.hard_state.term
        self.vote = restored.hard_state.vote
        self.role = Role.FOLLOWER
        self.leader: NodeId | None = None
        self.log = RaftLog(restored)
        self.commit = max(self.log.base_index, min(restored.commit, self.log.last_index))
        self.applied = self.log.base_index
        self.nonce = start.nonce
        self.progress: dict[NodeId, Progress] = {}
        """Every other member, while this node leads."""
        self.out = Outbox(self.log, restored.hard_state)
        self.now = start.now_seconds
        self.jitter = start.jitter
        self.leader_contact = -NEVER
        self.election_deadline = NEVER
        self._announced_leader: tuple[int, NodeId | None, Role] = (self.term, None, self.role)
        self._announced_membership: tuple[int, Membership] | None = None
        self.reset_election_timer()

    @property
    def membership(self) -> Membership:
        """The membership in force."""
        return self.log.membership

    @property
    def is_voter(self) -> bool:
        """Whether this node's vote counts, as far as it knows."""
        return self.node in self.membership.voters

    @property
    def may_stand(self) -> bool:
        """A node whose removal is not committed yet stands, too (thesis §4.2.2).

        It may hold the only log that can win: one that the others need before they can do without it.
        """
        return self.is_voter or self.log.was_voter_since(self.commit, self.node)

    def is_quorum(self, count: int) -> bool:
        """Whether so many voters are a majority."""
        return count >= self.membership.quorum

    def reset_election_timer(self) -> None:
        """Begin to wait for a leader anew."""
        low, high = self.settings.election_seconds_min, self.settings.election_seconds_max
        self.election_deadline = self.now + low + self.jitter * (high - low)

    def step_down(self, term: int, leader: NodeId | None) -> None:
        """Become a follower in this term (§5.1). Higher floors drop here what only a leader may hold."""
        if term > self.term:
            self.term, self.vote = term, None
        self.role, self.leader = Role.FOLLOWER, leader
        self.progress = {}
        self.reset_election_timer()

    def follow(self, leader: NodeId) -> None:
        """A message of the current term's leader arrived."""
        assert self.role is not Role.LEADER, f"two leaders in term {self.term}: {self.node} and {leader}"
        if self.role is not Role.FOLLOWER or self.leader != leader:
            self.step_down(self.term, leader)
        self.leader_contact = self.now
        self.reset_election_timer()

    def advance_commit(self, index: int) -> None:
        """Everything up to ``index`` is agreed."""
        if index > self.commit:
            assert index <= self.log.last_index, f"{self.node}: commit {index} is beyond the log"
            previous, self.commit = self.commit, index
            self.on_commit(previous)

    def on_commit(self, previous: int) -> None:
        """The commit index grew from ``previous``; higher floors add to this."""

    @property
    def own_term_committed(self) -> bool:
        """Whether a leader's commit index is sure to be the newest there is (§8)."""
        return self.log.term_at(self.commit) == self.term

    def announce(self) -> None:
        """Tell the shell what changed about leadership and membership, once per event."""
        leadership = (self.term, self.leader, self.role)
        if leadership != self._announced_leader:
            self._announced_leader = leadership
            self.out.act(LeadershipChanged(*leadership))
        members = (self.log.membership_index, self.log.membership)
        if members != self._announced_membership:
            self._announced_membership = members
            self.out.act(MembershipChanged(*members))

    def hard_state(self) -> HardState:
        """What must not be forgotten."""
        return HardState(self.term, self.vote)

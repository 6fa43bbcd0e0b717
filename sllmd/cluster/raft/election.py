"""Leader election (§5.2, §5.4.1) with PreVote, the vote lease and CheckQuorum (thesis §9.6, §6.2). Pure.

1. A voter that heard no leader for its time-out asks who would vote for it (PreVote): a node that was
   cut off cannot raise anybody's term by coming back.
2. Nobody helps against a leader heard within the shortest time-out (the lease), unless that leader
   itself asked for the election.
3. A vote is given once per term, to a log at least as up to date, and only once it is durable; this
   node's own vote counts only then, too.
4. A leader that hears no majority for one time-out gives up: it must not keep its followers' leases
   alive while it can hear nobody.
"""

from __future__ import annotations

from sllmd.cluster.raft.changes import Changes
from sllmd.cluster.raft.core import NEVER, Start
from sllmd.cluster.raft.entries import EntryKind
from sllmd.cluster.raft.events import Role
from sllmd.cluster.raft.messages import PreVoteReply, PreVoteRequest, TimeoutNow, VoteReply, VoteRequest
from sllmd.core.ids import NodeId


class Election(Changes):
    """Who leads."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.quorum_deadline = NEVER
        self._own_vote_ticket = 0
        self._votes: dict[NodeId, bool] = {}
        if self.membership.voters == (self.node,):
            self.election_deadline = start.now_seconds  # there is nobody whose word to wait for

    # --- standing ---

    def tick_election(self) -> None:
        """The time-out of a node that does not lead."""
        if self.now < self.election_deadline:
            return
        late = self.now - self.election_deadline > self.settings.late_seconds_max
        if late or not self.may_stand:
            self.reset_election_timer()
        else:
            self.start_prevote()

    def start_prevote(self) -> None:
        """Ask before standing."""
        self.step_down(self.term, None)
        self.role = Role.PRECANDIDATE
        self._votes = {}
        for peer in self._other_voters():
            self.out.now(
                PreVoteRequest(self.node, peer, self.term + 1, self.log.last_index, self.log.last_term)
            )
        self._count_vote(self.node, granted=True)

    def start_election(self, *, transfer: bool) -> None:
        """Stand in a new term."""
        self.step_down(self.term + 1, None)
        self.role, self.vote = Role.CANDIDATE, self.node
        self._votes = {}
        self._own_vote_ticket = self.out.next_ticket
        for peer in self._other_voters():
            request = VoteRequest(
                self.node, peer, self.term, self.log.last_index, self.log.last_term, transfer
            )
            self.out.after(request)

    def _other_voters(self) -> list[NodeId]:
        return [voter for voter in self.membership.voters if voter != self.node]

    def count_own_vote(self) -> None:
        """The disk moved on: perhaps this candidate's vote for itself is durable now."""
        if self.role is Role.CANDIDATE and self.out.durable_ticket >= self._own_vote_ticket:
            self._count_vote(self.node, granted=True)

    def _count_vote(self, voter: NodeId, *, granted: bool) -> None:
        if voter not in self.membership.voters:
            return
        self._votes.setdefault(voter, granted)
        yes = sum(self._votes.values())
        if self.is_quorum(yes):
            self._won()
        elif self.is_quorum(len(self._votes) - yes):
            self.step_down(self.term, None)

    def _won(self) -> None:
        if self.role is Role.PRECANDIDATE:
            self.start_election(transfer=False)
        else:
            self.become_leader()

    def become_leader(self) -> None:
        """Lead: an empty entry first, because only entries of this term can be committed by counting."""
        self.role, self.leader = Role.LEADER, self.node
        self.round = 0
        self.quorum_deadline = self.now + self.settings.election_seconds_min
        self.uncommitted_bytes = self.log.bytes_between(self.commit + 1, self.log.last_index)
        self.append_own(EntryKind.NOOP, b"")
        self.progress = {}
        self.track_members()
        for progress in self.progress.values():
            progress.next = self.log.last_index  # the entry just added is to be sent
        self.heartbeat()

    # --- voting ---

    def has_lease(self) -> bool:
        """Whether this node has reason to believe that a leader lives."""
        if self.role is Role.LEADER:
            return True
        return self.now - self.leader_contact < self.settings.election_seconds_min

    def candidate_is_current(self, request: VoteRequest | PreVoteRequest) -> bool:
        """Whether the candidate's log holds everything that this node knows to be possible."""
        return self.log.is_current(request.last_index, request.last_term)

    def on_prevote_request(self, request: PreVoteRequest) -> None:
        """Say what this node would do, and change nothing."""
        granted = request.term > self.term and not self.has_lease() and self.candidate_is_current(request)
        term = request.term if granted else self.term
        self.out.after(PreVoteReply(self.node, request.source, term, granted))

    def on_prevote_reply(self, reply: PreVoteReply) -> None:
        """Count a yes for the next term, a no of this term; a no of a later term ends the attempt."""
        if not reply.granted and reply.term > self.term:
            self.step_down(reply.term, None)
        elif self.role is Role.PRECANDIDATE and reply.term == self.term + reply.granted:
            self._count_vote(reply.source, granted=reply.granted)

    def may_vote_for(self, candidate: NodeId) -> bool:
        """One vote per term; none once this term has a leader."""
        return self.vote == candidate or (self.vote is None and self.leader is None)

    def on_vote_request(self, request: VoteRequest) -> None:
        """Vote, in the current term."""
        granted = self.may_vote_for(request.source) and self.candidate_is_current(request)
        if granted:
            self.vote = request.source
            self.reset_election_timer()
        self.out.after(VoteReply(self.node, request.source, self.term, granted))

    def on_vote_reply(self, reply: VoteReply) -> None:
        """Count it."""
        if self.role is Role.CANDIDATE:
            self._count_vote(reply.source, granted=reply.granted)

    def on_timeout_now(self, request: TimeoutNow) -> None:
        """The leader of this term hands over."""
        if self.role is Role.FOLLOWER and self.is_voter and request.source == self.leader:
            self.start_election(transfer=True)

    # --- leading ---

    def tick_quorum(self) -> None:
        """CheckQuorum."""
        if self.now < self.quorum_deadline:
            return
        self.quorum_deadline = self.now + self.settings.election_seconds_min
        if not self.quorum_heard():
            self.step_down(self.term, None)
        for progress in self.progress.values():
            progress.active = False

    def quorum_heard(self) -> bool:
        """Whether a majority was heard since the last check."""
        heard = sum(
            voter == self.node or (voter in self.progress and self.progress[voter].active)
            for voter in self.membership.voters
        )
        return self.is_quorum(heard)

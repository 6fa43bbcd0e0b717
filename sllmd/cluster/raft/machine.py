"""The machine's one door: ``Raft.handle(event) -> list[Action]``. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sllmd.cluster.raft.core import Start
from sllmd.cluster.raft.election import Election
from sllmd.cluster.raft.events import (
    Action,
    ChangeMembership,
    ChunkRead,
    ChunkUnavailable,
    Event,
    JournalLost,
    Persisted,
    Propose,
    Read,
    Receive,
    Role,
    SnapshotReceived,
    SnapshotRejected,
    SnapshotTaken,
    Stopped,
    Tick,
    TransferLeadership,
)
from sllmd.cluster.raft.messages import (
    Append,
    AppendReply,
    Message,
    PreVoteReply,
    PreVoteRequest,
    ReadReply,
    ReadRequest,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from sllmd.cluster.raft.status import PeerStatus, RaftStatus
from sllmd.core.ids import NodeId


class Raft(Election):
    """One node of one raft group. One task owns it; it owns no task, no clock, no disk, no socket."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._events: dict[type, Callable[[Any], None]] = {
            Tick: self._on_tick,
            Receive: self._on_receive,
            Persisted: self._on_persisted,
            Propose: self.on_propose,
            ChangeMembership: self.on_change_membership,
            Read: self.on_read,
            TransferLeadership: self.on_transfer_leadership,
            SnapshotTaken: self.on_snapshot_taken,
            ChunkRead: self.on_chunk_read,
            ChunkUnavailable: self.on_chunk_unavailable,
            SnapshotReceived: self.on_snapshot_received,
            SnapshotRejected: self.on_snapshot_rejected,
            JournalLost: self._on_journal_lost,
        }
        self._messages: dict[type, Callable[[Any], None]] = {
            PreVoteRequest: self.on_prevote_request,
            PreVoteReply: self.on_prevote_reply,
            VoteRequest: self.on_vote_request,
            VoteReply: self.on_vote_reply,
            Append: self.on_append,
            AppendReply: self.on_append_reply,
            SnapshotChunk: self.on_snapshot_chunk,
            SnapshotReply: self.on_snapshot_reply,
            TimeoutNow: self.on_timeout_now,
            ReadRequest: self.on_read_request,
            ReadReply: self.on_read_reply,
        }

    def handle(self, event: Event) -> list[Action]:
        """Take one event; the actions that it leads to, to be carried out in order."""
        if self.role is Role.STOPPED:
            return []
        self.now = max(self.now, event.now_seconds)
        self._events[type(event)](event)
        self.leave_if_removed()
        self.deliver()
        self.answer_reads()
        self.announce()
        return self.out.flush(self.hard_state(), self.commit)

    def deadline_seconds(self) -> float:
        """When the next ``Tick`` is due; infinity if only an event can change anything."""
        if self.role is Role.LEADER:
            return min(self.heartbeat_deadline, self.quorum_deadline, self.transfer_deadline)
        waiting = self.election_deadline if self.may_stand else float("inf")
        return min(waiting, self.reads_deadline())

    def status(self) -> RaftStatus:
        """What there is to see; promotions and ``sllmd status`` are made from it."""
        last = self.log.last_index
        peers = (
            PeerStatus(peer, one.state, one.match, last - one.match, one.active)
            for peer, one in self.progress.items()
        )
        return RaftStatus(
            node=self.node,
            role=self.role,
            epoch=self.term,
            leader=self.leader,
            membership=self.membership,
            membership_committed=self.log.membership_index <= self.commit,
            commit_index=self.commit,
            applied_index=self.applied,
            durable_index=self.out.durable_index,
            last_index=last,
            peers=tuple(peers),
        )

    def _on_tick(self, event: Tick) -> None:
        self.jitter = event.jitter
        self.tick_reads()
        if self.role is not Role.LEADER:
            self.tick_election()
            return
        self.tick_quorum()
        self.tick_transfer()
        if self.role is Role.LEADER and self.now >= self.heartbeat_deadline:
            self.heartbeat()

    def _on_persisted(self, event: Persisted) -> None:
        self.out.persisted(event.ticket)
        self.count_own_vote()
        self.maybe_commit()

    def _on_receive(self, event: Receive) -> None:
        message = event.message
        if message.target != self.node:
            return  # meant for a former owner of this address
        if isinstance(message, (PreVoteRequest, PreVoteReply)):
            self._messages[type(message)](message)
            return
        if message.term > self.term:
            if self._disturbs(message):
                return
            self.step_down(message.term, None)
        elif message.term < self.term:
            self._answer_the_past(message)
            return
        self._messages[type(message)](message)

    def _disturbs(self, message: Message) -> bool:
        """A candidate that nobody needs: not even its term is taken notice of."""
        return isinstance(message, VoteRequest) and not message.transfer and self.has_lease()

    def _answer_the_past(self, message: Message) -> None:
        """Tell the sender of an old term what the term is; old answers are dropped."""
        source: NodeId = message.source
        if isinstance(message, VoteRequest):
            self.out.after(VoteReply(self.node, source, self.term, granted=False))
        elif isinstance(message, (Append, SnapshotChunk)):
            self.out.after(AppendReply(self.node, source, self.term, 0, False, 0, 0, 0))

    def _on_journal_lost(self, event: JournalLost) -> None:
        """Nothing can be promised any more; the others elect without this node."""
        self.step_down(self.term, None)
        self.role = Role.STOPPED
        self.out.act(Stopped(event.reason))

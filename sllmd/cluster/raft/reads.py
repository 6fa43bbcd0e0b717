"""Linearizable reads without the log and without clocks (§8; thesis §6.4). Pure.

The leader notes its commit index, asks a majority whether it still leads (a round of heartbeats), and
then the read may be answered once that index is applied. Reads that arrive during a round wait for the
next one, so a thousand reads cost as many rounds as one read takes time. A follower asks the leader for
the index and answers from its own state.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from sllmd.cluster.raft.core import NEVER, Start
from sllmd.cluster.raft.events import Read, ReadReady, ReadRefused, Refusal, Role
from sllmd.cluster.raft.messages import AppendReply, ReadReply, ReadRequest
from sllmd.cluster.raft.replication import Replication
from sllmd.core.ids import NodeId


@dataclass(frozen=True, slots=True)
class _Asked:
    """A read that a leader is to find the index for."""

    asker: NodeId
    nonce: int
    read_id: int


class Reads(Replication):
    """Read index on the leader, forwarded reads on everybody else."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._waiting: list[_Asked] = []
        self._in_round: list[_Asked] = []
        self._round_index = 0
        self._forwarded: dict[int, float] = {}
        self._confirmed: deque[tuple[int, int]] = deque()  # (index, read_id), answered here once applied

    def on_read(self, event: Read) -> None:
        """Begin a read of this node's own."""
        if self.role is Role.LEADER:
            self._enqueue(_Asked(self.node, self.nonce, event.read_id))
        elif self.leader is None:
            self.out.act(ReadRefused(event.read_id, Refusal.NO_LEADER))
        elif len(self._forwarded) >= self.settings.reads_max:
            self.out.act(ReadRefused(event.read_id, Refusal.BUSY))
        else:
            self._forwarded[event.read_id] = self.now + self.settings.election_seconds_min
            self.out.now(ReadRequest(self.node, self.leader, self.term, self.nonce, event.read_id))

    def on_read_request(self, request: ReadRequest) -> None:
        """A follower asks; a node that does not lead stays silent and the asker's patience ends."""
        if self.role is Role.LEADER:
            self._enqueue(_Asked(request.source, request.nonce, request.read_id))

    def _enqueue(self, asked: _Asked) -> None:
        if len(self._waiting) < self.settings.reads_max:
            self._waiting.append(asked)
            self.start_round()
        elif asked.asker == self.node:
            self.out.act(ReadRefused(asked.read_id, Refusal.BUSY))

    def start_round(self) -> None:
        """Ask everybody whether this node still leads, for all reads that wait."""
        if self._in_round or not self._waiting or not self.own_term_committed:
            return
        self._in_round, self._waiting = self._waiting, []
        self._round_index = self.commit
        self.round += 1
        self.ask_everybody()
        self.check_round()

    def round_confirmed(self) -> bool:
        """A majority answered a message that was sent after the round had begun."""
        answered = sum(
            voter == self.node or (voter in self.progress and self.progress[voter].round >= self.round)
            for voter in self.membership.voters
        )
        return self.is_quorum(answered)

    def check_round(self) -> None:
        """Answer the reads of a confirmed round and begin the next."""
        if not self._in_round or not self.round_confirmed():
            return
        asked, self._in_round = self._in_round, []
        for one in asked:
            if one.asker == self.node:
                self._confirmed.append((self._round_index, one.read_id))
            else:
                reply = ReadReply(self.node, one.asker, self.term, one.nonce, one.read_id, self._round_index)
                self.out.now(reply)
        self.start_round()

    def on_append_reply(self, reply: AppendReply) -> None:
        """Any answer may be the one that confirms a round."""
        super().on_append_reply(reply)
        if self.role is Role.LEADER:
            self.check_round()

    def on_commit(self, previous: int) -> None:
        """The first commit of a leader's own term lets reads begin."""
        super().on_commit(previous)
        if self.role is Role.LEADER:
            self.start_round()

    def on_read_reply(self, reply: ReadReply) -> None:
        """The leader's answer to a forwarded read of this life."""
        if reply.nonce == self.nonce and self._forwarded.pop(reply.read_id, None) is not None:
            self._confirmed.append((reply.index, reply.read_id))

    def answer_reads(self) -> None:
        """Reads whose index is applied here may be answered now."""
        for _ in range(len(self._confirmed)):
            index, read_id = self._confirmed.popleft()
            if index <= self.applied:
                self.out.act(ReadReady(read_id))
            else:
                self._confirmed.append((index, read_id))

    def step_down(self, term: int, leader: NodeId | None) -> None:
        """Reads that were not confirmed must be asked again, of whoever leads now."""
        super().step_down(term, leader)
        own = [one.read_id for one in self._waiting + self._in_round if one.asker == self.node]
        for read_id in [*own, *self._forwarded]:
            self.out.act(ReadRefused(read_id, Refusal.LEADER_CHANGED))
        self._waiting, self._in_round, self._forwarded = [], [], {}

    def reads_deadline(self) -> float:
        """When the oldest forwarded read runs out of patience."""
        return next(iter(self._forwarded.values()), NEVER)

    def tick_reads(self) -> None:
        """Refuse forwarded reads that nobody answered."""
        late = [read_id for read_id, deadline in self._forwarded.items() if deadline <= self.now]
        for read_id in late:
            del self._forwarded[read_id]
            self.out.act(ReadRefused(read_id, Refusal.TIMEOUT))

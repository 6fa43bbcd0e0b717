"""Leadership transfer (thesis §3.10): bring one voter up to date, then ask it to stand at once. Pure."""

from __future__ import annotations

from sllmd.cluster.raft.core import NEVER, Start
from sllmd.cluster.raft.events import Refusal, Refused, Role, TransferFailed, TransferLeadership
from sllmd.cluster.raft.messages import AppendReply, TimeoutNow
from sllmd.cluster.raft.reads import Reads
from sllmd.core.ids import NodeId


class Handover(Reads):
    """At most one transfer at a time; no proposals are taken meanwhile; it is given up after a time-out."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.transfer_target: NodeId | None = None
        self.transfer_deadline = NEVER

    def on_transfer_leadership(self, event: TransferLeadership) -> None:
        """Begin a transfer, or say why not."""
        reason = self._why_no_transfer(event.target)
        if reason is not None:
            self.out.act(Refused(None, reason, self.leader))
            return
        self.transfer_target = event.target
        self.transfer_deadline = self.now + self.settings.election_seconds_min
        self._hand_over_if_ready()

    def _why_no_transfer(self, target: NodeId) -> Refusal | None:
        if self.role is not Role.LEADER:
            return Refusal.NOT_LEADER
        if self.transfer_target is not None:
            return Refusal.TRANSFERRING
        if target == self.node or target not in self.membership.voters:
            return Refusal.INVALID
        return None

    def _hand_over_if_ready(self) -> None:
        target = self.transfer_target
        progress = self.progress.get(target) if target is not None else None
        if target is not None and progress and progress.match == self.log.last_index:
            self.out.now(TimeoutNow(self.node, target, self.term))

    def on_append_reply(self, reply: AppendReply) -> None:
        """The target may have caught up with this."""
        super().on_append_reply(reply)
        if reply.source == self.transfer_target:
            self._hand_over_if_ready()

    def tick_transfer(self) -> None:
        """Give up when the target did not take over in time."""
        if self.transfer_target is not None and self.now >= self.transfer_deadline:
            self.out.act(TransferFailed(self.transfer_target))
            self._end_transfer()

    def _end_transfer(self) -> None:
        self.transfer_target, self.transfer_deadline = None, NEVER

    def step_down(self, term: int, leader: NodeId | None) -> None:
        """Whoever leads now, this transfer is over."""
        super().step_down(term, leader)
        self._end_transfer()

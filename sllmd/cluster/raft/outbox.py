"""Gathers what one event leads to, and pairs promises with what makes them true. Pure.

``after`` is for messages that promise something (a vote, an acknowledgement): they leave inside the next
``Persist``, or at once if nothing that they could depend on is still on its way to the disk. It also keeps
the one number that the rest needs to know about the disk: up to where the log is durable.
"""

from __future__ import annotations

from collections import deque

from sllmd.cluster.raft.entries import HardState, SnapshotMeta
from sllmd.cluster.raft.events import Action, Persist, Send
from sllmd.cluster.raft.log import RaftLog
from sllmd.cluster.raft.messages import Message


class Outbox:
    """Actions of the event being handled, and tickets of the disk."""

    def __init__(self, log: RaftLog, hard_state: HardState) -> None:
        self.durable_index = log.last_index
        self.durable_ticket = 0
        self._log = log
        self._hard_state = hard_state
        self._ticket = 0
        self._pending: deque[list[int]] = deque()  # [ticket, last index that it makes durable]
        self._now: list[Message] = []
        self._after: list[Message] = []
        self._actions: list[Action] = []
        self._snapshot: SnapshotMeta | None = None

    @property
    def next_ticket(self) -> int:
        """The ticket under which everything changed so far will be durable."""
        return self._ticket + 1

    def now(self, message: Message) -> None:
        """Send without waiting for the disk."""
        self._now.append(message)

    def after(self, message: Message) -> None:
        """Send once everything changed up to here is durable."""
        self._after.append(message)

    def act(self, action: Action) -> None:
        """Any other action, in the order of the calls."""
        self._actions.append(action)

    def install(self, meta: SnapshotMeta) -> None:
        """The log was reset to a received snapshot, whose bytes are durable already."""
        self._snapshot = meta
        self.durable_index = meta.index
        self._cap(meta.index)

    def truncated(self, first: int) -> None:
        """Entries from ``first`` on were replaced: writes still on their way no longer vouch for them."""
        self.durable_index = min(self.durable_index, first - 1)
        self._cap(first - 1)

    def _cap(self, index: int) -> None:
        for pending in self._pending:
            pending[1] = min(pending[1], index)

    def persisted(self, ticket: int) -> None:
        """The disk has everything up to this ticket."""
        self.durable_ticket = max(self.durable_ticket, ticket)
        while self._pending and self._pending[0][0] <= ticket:
            self.durable_index = max(self.durable_index, self._pending.popleft()[1])

    def flush(self, hard_state: HardState, commit: int) -> list[Action]:
        """The actions of this event, promises paired; the outbox is empty afterwards."""
        actions: list[Action] = []
        entries = self._log.take_unsaved()
        changed = hard_state if hard_state != self._hard_state else None
        if entries or changed or self._snapshot or (self._after and self._pending):
            self._ticket += 1
            self._pending.append([self._ticket, self._log.last_index])
            messages = tuple(self._after)
            actions.append(Persist(self._ticket, changed, self._snapshot, entries, messages, commit))
        else:
            actions.extend(Send(message) for message in self._after)
        actions.extend(Send(message) for message in self._now)
        actions.extend(self._actions)
        self._hard_state, self._snapshot = hard_state, None
        self._now.clear()
        self._after.clear()
        self._actions.clear()
        return actions

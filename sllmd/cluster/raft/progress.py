"""What a leader knows about one other node's log, and what is on its way there. Pure.

Three states, as in etcd's raft: PROBE (where do the logs agree? one message at a time), REPLICATE (a
pipeline, bounded), SNAPSHOT (the entries needed no longer exist). The bound on what is on its way is not
an optimisation: without it every answer resends the whole unanswered tail, and a busy leader drowns.
"""

from __future__ import annotations

from collections import deque
from enum import StrEnum

from sllmd.cluster.raft.entries import SnapshotMeta


class ProgressState(StrEnum):
    """How the leader sends to this node."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """One node, seen from the leader."""

    def __init__(self, next_index: int, inflight_max: int, *, active: bool) -> None:
        self.match = 0
        """Up to here the logs are known to agree, durably."""
        self.next = next_index
        """The next entry to send."""
        self.state = ProgressState.PROBE
        self.active = active
        """Heard from since the last check of the quorum."""
        self.round = 0
        """The newest read round that this node answered."""
        self.commit_sent = 0
        """The commit index that it was last told."""
        self.probe_sent = False
        self.snapshot: SnapshotMeta | None = None
        self.chunk_offset = 0
        self.chunk_moved = False
        """The transfer moved on since the last heartbeat."""
        self._inflight: deque[int] = deque()
        self._inflight_max = inflight_max

    @property
    def may_send_entries(self) -> bool:
        """Whether another message with entries may be on its way."""
        match self.state:
            case ProgressState.PROBE:
                return not self.probe_sent
            case ProgressState.REPLICATE:
                return len(self._inflight) < self._inflight_max
            case ProgressState.SNAPSHOT:
                return False

    @property
    def inflight(self) -> int:
        """Unanswered appends."""
        return len(self._inflight)

    def sent(self, last_index: int, commit: int) -> None:
        """Entries up to ``last_index`` are on their way."""
        self.commit_sent = max(self.commit_sent, commit)
        if self.state is ProgressState.PROBE:
            self.probe_sent = True
        elif last_index >= self.next:
            self.next = last_index + 1
            self._inflight.append(last_index)

    def accepted(self, index: int) -> bool:
        """The node has everything up to ``index``; says whether that is news."""
        self.probe_sent = False
        news = index > self.match
        self.match = max(self.match, index)
        while self._inflight and self._inflight[0] <= index:
            self._inflight.popleft()
        caught_up = self.snapshot is not None and self.match >= self.snapshot.index
        if self.state is ProgressState.PROBE or caught_up:
            self._enter(ProgressState.REPLICATE, self.match + 1)
        self.next = max(self.next, self.match + 1)
        return news

    def rejected(self, previous_index: int, hint: int) -> bool:
        """The node's log does not agree at ``previous_index``; False if this is an old story."""
        if self.state is ProgressState.SNAPSHOT or previous_index <= self.match:
            return False
        if self.state is ProgressState.REPLICATE:
            self.become_probe()  # something was lost on the way: go back to what is certain
            return True
        if previous_index != self.next - 1:
            return False
        self.probe_sent = False
        self.next = max(self.match + 1, min(previous_index, hint + 1))
        return True

    def become_probe(self) -> None:
        """Go back to what is certain and ask."""
        self._enter(ProgressState.PROBE, self.match + 1)

    def become_snapshot(self, meta: SnapshotMeta) -> None:
        """Begin to send this snapshot."""
        self._enter(ProgressState.SNAPSHOT, meta.index + 1)
        self.snapshot = meta

    def _enter(self, state: ProgressState, next_index: int) -> None:
        self.state, self.next = state, next_index
        self.probe_sent, self.commit_sent = False, 0
        self.snapshot, self.chunk_offset, self.chunk_moved = None, 0, False
        self._inflight.clear()

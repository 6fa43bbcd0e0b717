"""What must hold after every step, whatever happens. Knows everything, even the disks of dead nodes."""

from __future__ import annotations

from sllmd.cluster.raft.entries import Entry, HardState, SnapshotMeta
from sllmd.cluster.raft.events import Action, Apply, Persist, Role, Send
from sllmd.cluster.raft.machine import Raft
from sllmd.cluster.raft.messages import Message, VoteReply
from sllmd.core.ids import NodeId


class Violation(AssertionError):
    """An invariant does not hold."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)


class DurableLog:
    """What a node's disk has, entry by entry."""

    def __init__(self) -> None:
        self.base = 0
        self.last = 0
        self.terms: dict[int, int] = {}
        self.hard_state = HardState(0, None)

    def write(self, persist: Persist) -> None:
        if persist.snapshot is not None:
            self.base = self.last = persist.snapshot.index
            self.terms = {}
        if persist.entries:
            for index in range(persist.entries[0].index, self.last + 1):
                self.terms.pop(index, None)
            for entry in persist.entries:
                self.terms[entry.index] = entry.term
            self.last = persist.entries[-1].index
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state

    def copy(self) -> DurableLog:
        """The same, to be written on apart."""
        other = DurableLog()
        other.base, other.last, other.terms = self.base, self.last, dict(self.terms)
        other.hard_state = self.hard_state
        return other

    def after(self, index: int) -> dict[int, int]:
        """Terms of the entries behind ``index``."""
        return {at: term for at, term in self.terms.items() if at > index}

    def has(self, index: int, term: int) -> bool:
        return index <= self.base or self.terms.get(index) == term


class Oracle:
    """Fed with every step of every node."""

    def __init__(self) -> None:
        self.leaders: dict[int, NodeId] = {}
        self.votes: dict[tuple[int, NodeId], NodeId] = {}
        self.entries: dict[tuple[int, int], tuple[bytes, int | None]] = {}
        self.applied: dict[int, tuple[int, bytes]] = {}
        self.committed_in: dict[int, int] = {}
        """At the latest in this term: that of the first node that applied the entry."""
        self.last_applied = 0
        self.durable: dict[NodeId, DurableLog] = {}
        self.terms: dict[NodeId, int] = {}
        self.commits: dict[NodeId, int] = {}
        self.elections = 0

    def after_step(self, raft: Raft, actions: list[Action], was: Role) -> None:
        require(raft.term >= self.terms.get(raft.node, 0), f"{raft.node}: its term went back")
        self.terms[raft.node] = raft.term
        for action in actions:
            if isinstance(action, Persist):
                self._entries_written(raft, action)
            elif isinstance(action, Apply):
                for entry in action.entries:
                    self.committed_in.setdefault(entry.index, raft.term)
                    self._entry_applied(raft.node, entry)
            elif isinstance(action, Send):
                self._message_meant(action.message)
        if raft.role is Role.LEADER:
            self._leads(raft, fresh=was is not Role.LEADER)
        self._committed(raft)

    def persisted(self, node: NodeId, persist: Persist) -> None:
        """Durable now; what it promises is on its way."""
        self.durable[node].write(persist)
        if persist.hard_state is not None and persist.hard_state.vote is not None:
            self._voted(persist.hard_state.term, node, persist.hard_state.vote)
        for message in persist.messages:
            self._message_meant(message)

    def restarted(self, node: NodeId, found: HardState) -> None:
        """What was not durable may go back, and a commit index always does."""
        self.terms[node], self.commits[node] = found.term, 0

    def _leads(self, raft: Raft, *, fresh: bool) -> None:
        owner = self.leaders.setdefault(raft.term, raft.node)
        require(owner == raft.node, f"election safety: term {raft.term} has leaders {owner} and {raft.node}")
        for progress in raft.progress.values():
            require(progress.inflight <= raft.settings.inflight_appends_max, "the pipeline is over its limit")
        if fresh:
            self.elections += 1
            last = self._last_committed_before(raft.term)
            if last > raft.log.base_index:
                term = self.applied[last][0]
                what = f"leader completeness: {raft.node} leads term {raft.term} without entry {last}/{term}"
                require(raft.log.matches(last, term), what)

    def _last_committed_before(self, term: int) -> int:
        """A leader owes nothing to leaders after it, and it may learn late that it was elected."""
        index = self.last_applied
        while index > 0 and self.committed_in.get(index, 0) >= term:
            index -= 1
        return index

    def _entries_written(self, raft: Raft, persist: Persist) -> None:
        """Log matching, by induction: equal places have equal entries and equal predecessors."""
        if not persist.entries:
            return
        before = raft.log.term_at(persist.entries[0].index - 1)
        for entry in persist.entries:
            seen = self.entries.setdefault((entry.index, entry.term), (entry.data, before))
            if before is not None and seen[1] is None:
                self.entries[entry.index, entry.term] = (entry.data, before)
            elif before is not None:
                what = f"log matching: {raft.node} has another entry at {entry.index}/{entry.term}"
                require(seen == (entry.data, before), what)
            before = entry.term

    def _entry_applied(self, node: NodeId, entry: Entry) -> None:
        seen = self.applied.setdefault(entry.index, (entry.term, entry.data))
        place = f"{entry.index} (term {entry.term}, not {seen[0]})"
        what = f"state machine safety: {node} applied another entry {place}"
        require(seen == (entry.term, entry.data), what)
        self.last_applied = max(self.last_applied, entry.index)

    def restored(self, node: NodeId, meta: SnapshotMeta) -> None:
        """A received snapshot may only stand for what was applied somewhere."""
        seen = self.applied.get(meta.index)
        what = f"{node} took a snapshot of {meta.index}/{meta.term}, which was never applied"
        require(seen is not None and seen[0] == meta.term, what)

    def _message_meant(self, message: Message) -> None:
        if isinstance(message, VoteReply) and message.granted:
            self._voted(message.term, message.source, message.target)

    def _voted(self, term: int, voter: NodeId, candidate: NodeId) -> None:
        voted = self.votes.setdefault((term, voter), candidate)
        require(voted == candidate, f"{voter} voted twice in term {term}: {voted} and {candidate}")

    def _committed(self, raft: Raft) -> None:
        before = self.commits.get(raft.node, 0)
        require(raft.commit >= before, f"{raft.node}: its commit index went back")
        require(raft.commit >= raft.applied, f"{raft.node}: applied beyond its commit index")
        self.commits[raft.node] = raft.commit
        if raft.role is Role.LEADER and raft.commit > max(before, raft.log.base_index):
            self._is_durable(raft)

    def _is_durable(self, raft: Raft) -> None:
        """A commit index is a promise: a majority of disks has everything up to it."""
        term = raft.log.term_at(raft.commit)
        assert term is not None
        members = raft.log.membership
        have = sum(
            voter in self.durable and self.durable[voter].has(raft.commit, term) for voter in members.voters
        )
        what = f"{raft.node} committed {raft.commit}/{term}, which {have} of {len(members.voters)} disks have"
        require(have >= len(members.voters) // 2 + 1, what)

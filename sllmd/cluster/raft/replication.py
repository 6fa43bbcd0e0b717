"""Log replication (§5.3) and the commit rule (§5.4.2). Pure."""

from __future__ import annotations

from sllmd.cluster.raft.core import NEVER, Start
from sllmd.cluster.raft.entries import Entry, EntryKind
from sllmd.cluster.raft.events import Apply, Role
from sllmd.cluster.raft.messages import Append, AppendReply
from sllmd.cluster.raft.progress import Progress, ProgressState
from sllmd.cluster.raft.snapshots import Snapshots
from sllmd.core.ids import NodeId


class Replication(Snapshots):
    """The leader's pipeline and the follower's end of it."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self.round = 0
        """Counts read rounds of one leadership; every append carries it and every reply returns it."""
        self.heartbeat_deadline = NEVER
        self.uncommitted_bytes = 0

    # --- leader ---

    def append_own(self, kind: EntryKind, data: bytes) -> Entry:
        """A new entry of this leader's term."""
        entry = Entry(self.log.last_index + 1, self.term, kind, data)
        self.log.append((entry,))
        self.uncommitted_bytes += len(data)
        return entry

    def track_members(self) -> None:
        """One ``Progress`` per other member of the membership in force."""
        others = [peer for peer in self.membership.everyone if peer != self.node]
        self.progress = {peer: self.progress.get(peer) or self._fresh_progress() for peer in others}

    def _fresh_progress(self) -> Progress:
        inflight_max = self.settings.inflight_appends_max
        return Progress(self.log.last_index + 1, inflight_max, active=True)

    def broadcast(self) -> None:
        """Send everybody what they lack, within their limits."""
        for peer, progress in self.progress.items():
            self.send_appends(peer, progress)

    def heartbeat(self) -> None:
        """Tell everybody that this leader is alive; what got lost on the way shows in their answers.

        Whoever was not heard of late gets no entries and no parts of a snapshot until it answers: it would
        be the same bytes, ten times a second, for as long as a node is dead.
        """
        self.heartbeat_deadline = self.now + self.settings.heartbeat_seconds
        for peer, progress in self.progress.items():
            progress.probe_sent = False
            if progress.state is ProgressState.SNAPSHOT:
                self.nudge_snapshot(peer, progress)
            elif progress.active and self.send_appends(peer, progress):
                continue
            self._beat(peer, progress)

    def ask_everybody(self) -> None:
        """Begin a read round: a word to everybody, and nothing of what only a heartbeat may repeat."""
        for peer, progress in self.progress.items():
            self._beat(peer, progress)

    def _beat(self, peer: NodeId, progress: Progress) -> None:
        """A message without entries; to a node that waits for a snapshot, one that it cannot refuse."""
        waits = progress.state is ProgressState.SNAPSHOT
        if waits or not self._send_next(peer, progress, with_entries=False):
            self._send(peer, progress, 0, 0, ())

    def send_appends(self, peer: NodeId, progress: Progress) -> bool:
        """Fill the pipeline; says whether anything was sent."""
        sent = False
        while progress.may_send_entries:
            behind = progress.next <= self.log.last_index
            if not behind and progress.commit_sent >= self.commit:
                break
            if not self._send_next(peer, progress, with_entries=behind):
                break
            sent = True
            if not behind:
                break
        return sent

    def _send_next(self, peer: NodeId, progress: Progress, *, with_entries: bool) -> bool:
        previous = progress.next - 1
        previous_term = self.log.term_at(previous)
        if previous_term is None:
            self.begin_snapshot(peer, progress)
            return False
        entries: tuple[Entry, ...] = ()
        if with_entries:
            limits = self.settings.append_entries_max, int(self.settings.append_bytes_max)
            entries = self.log.slice(progress.next, *limits)
        self._send(peer, progress, previous, previous_term, entries)
        return True

    def _send(
        self, peer: NodeId, progress: Progress, previous: int, term: int, entries: tuple[Entry, ...]
    ) -> None:
        append = Append(self.node, peer, self.term, previous, term, entries, self.commit, self.round)
        self.out.now(append)
        progress.sent(previous + len(entries), self.commit)

    def on_append_reply(self, reply: AppendReply) -> None:
        """Move a node's books on, and with them perhaps the commit index."""
        progress = self.progress.get(reply.source)
        if self.role is not Role.LEADER or progress is None:
            return
        progress.active = True
        progress.round = max(progress.round, reply.round)
        if not reply.accepted:
            hint, _ = self.log.last_with_term_at_most(reply.index, reply.hint_term)
            if progress.rejected(reply.previous_index, hint):
                self.send_appends(reply.source, progress)
            return
        if progress.accepted(reply.index):
            self.maybe_commit()
        self.send_appends(reply.source, progress)

    def quorum_match(self) -> int:
        """The highest index that a majority of the voters has durably; this node's own disk counts too."""
        matches = sorted(self._match_of(voter) for voter in self.membership.voters)
        return matches[len(matches) - self.membership.quorum] if matches else 0

    def _match_of(self, voter: NodeId) -> int:
        if voter == self.node:
            return self.own_match()
        progress = self.progress.get(voter)
        return progress.match if progress else 0

    def own_match(self) -> int:
        """What the leader counts for itself: what its disk has, not what its memory has."""
        return self.out.durable_index

    def may_commit(self, index: int) -> bool:
        """Only entries of the leader's own term are committed by counting; older ones come with them."""
        return self.log.term_at(index) == self.term

    def maybe_commit(self) -> None:
        """Apply the commit rule."""
        if self.role is not Role.LEADER:
            return
        index = self.quorum_match()
        if index > self.commit and self.may_commit(index):
            self.advance_commit(index)

    def on_commit(self, previous: int) -> None:
        """Room for new proposals; everybody is told."""
        super().on_commit(previous)
        if self.role is Role.LEADER:
            self.uncommitted_bytes -= self.log.bytes_between(previous + 1, self.commit)
            self.broadcast()

    # --- follower ---

    def on_append(self, message: Append) -> None:
        """Take entries if the log agrees with what comes before them."""
        self.follow(message.source)
        if message.previous_index < self.commit:
            # Old news: all up to the commit index agrees with every leader's log already.
            self._reply(message, accepted=True, index=self.commit)
        elif self.log_agrees(message):
            self._take_entries(message)
            last = message.previous_index + len(message.entries)
            self.advance_commit(min(message.commit, last))
            self._reply(message, accepted=True, index=last)
        else:
            self._reject(message)

    def log_agrees(self, message: Append) -> bool:
        """The consistency check that makes agreement at one place agreement on everything before."""
        return self.log.matches(message.previous_index, message.previous_term)

    def _take_entries(self, message: Append) -> None:
        entries = message.entries[self.log.first_conflict(message.entries) :]
        if not entries:
            return
        first = entries[0].index
        if first <= self.log.last_index:
            assert first > self.commit, f"{self.node}: a committed entry at {first} would be replaced"
            self.log.truncate(first)
            self.out.truncated(first)
        self.log.append(entries)

    def _reject(self, message: Append) -> None:
        hint, hint_term = self.log.last_with_term_at_most(message.previous_index, message.previous_term)
        self._reply(message, accepted=False, index=hint, hint_term=hint_term)

    def _reply(self, message: Append, *, accepted: bool, index: int, hint_term: int = 0) -> None:
        source, previous = message.source, message.previous_index
        reply = AppendReply(self.node, source, self.term, message.round, accepted, previous, index, hint_term)
        self.out.after(reply)

    def deliver(self) -> None:
        """Hand over what is agreed and durable here: nothing is applied that this node could forget."""
        last = min(self.commit, self.out.durable_index)
        if last > self.applied:
            self.out.act(Apply(self.log.range(self.applied + 1, last)))
            self.applied = last

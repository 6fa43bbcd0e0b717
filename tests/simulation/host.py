"""One simulated node: the shell around the real machine, the real journal and the real catalogue."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sllmd.cluster.catalogue import EMPTY, Catalogue, apply, pack_command, restore, snapshot, unpack_command
from sllmd.cluster.journal.settings import JournalSettings
from sllmd.cluster.journal.snapshots import describe
from sllmd.cluster.journal.wal import Wal
from sllmd.cluster.raft import Raft, RaftSettings, Start
from sllmd.cluster.raft.entries import EntryKind, Restored, SnapshotMeta
from sllmd.cluster.raft.events import (
    Action,
    Appended,
    Apply,
    ChunkRead,
    ChunkUnavailable,
    Event,
    FinishSnapshot,
    JournalLost,
    Persist,
    Persisted,
    Proposal,
    Propose,
    Read,
    ReadChunk,
    ReadReady,
    ReadRefused,
    Receive,
    Refused,
    Restore,
    Role,
    Send,
    SnapshotReceived,
    SnapshotRejected,
    SnapshotTaken,
    Stopped,
    Tick,
    WriteChunk,
)
from sllmd.cluster.raft.messages import Message, pack_message, unpack_message
from sllmd.core.errors import JournalCorrupt, JournalFailed
from sllmd.core.ids import NodeId
from tests.simulation.disk import SimDisk

if TYPE_CHECKING:
    from tests.simulation.world import World

RAFT = RaftSettings(
    heartbeat_seconds=0.05,
    election_seconds_min=0.2,
    election_seconds_max=0.4,
    append_entries_max=8,
    inflight_appends_max=4,
    chunk_bytes=60,
    trailing_entries=4,
    uncommitted_bytes_max=4096,
)
"""Small limits and short times: everything rare in a day is frequent in a second."""
JOURNAL = JournalSettings(segment_bytes=3000)
SNAPSHOT_ENTRIES = 20

Answer = Callable[[Any], None]


class Host:
    """Everything volatile is made in ``start`` and gone after ``crash``."""

    raft_class: type[Raft] = Raft

    def __init__(self, world: World, node: NodeId, founded: Restored) -> None:
        self.world = world
        self.node = node
        self.disk = SimDisk()
        self.up = False
        self.corrupt = ""
        self.paused_until = 0.0
        self.disk_seconds = (0.0002, 0.004)
        self._life = 0
        self._lost: list[Persist] = []
        """What was on its way to the disk at the last crash."""
        self._tick_at = float("inf")
        wal = Wal(self.disk, JOURNAL)
        if founded.entries:
            wal.append([Persist(0, founded.hard_state, None, founded.entries, ())])
            world.oracle.durable[node].write(Persist(0, founded.hard_state, None, founded.entries, ()))
        self.disk.sync_names()

    # --- life and death ---

    def start(self) -> None:
        if self.up or self.corrupt:
            return
        try:
            self.wal = Wal(self.disk, JOURNAL)
        except JournalCorrupt as error:
            self.corrupt = str(error)
            return
        self.up = True
        self._life += 1
        restored = self.wal.recovered.restored
        self.raft = self.raft_class(
            Start(self.node, RAFT, restored, self.world.now, self.world.random.random(), self._nonce())
        )
        self.state: Catalogue = EMPTY
        if restored.snapshot is not None:
            self.state = restore(self.wal.snapshots.read(restored.snapshot))
        self._jobs: deque[Action | Callable[[], None]] = deque()
        self._in_flight: list[Persist] = []
        self._busy = False
        self._proposals: dict[int, tuple[int, Answer]] = {}
        self._proposed: dict[int, Answer] = {}
        self._reads: dict[int, Answer] = {}
        self._since_snapshot = 0
        self._last_read = 0
        self._tick_at = float("inf")
        self._recovered(restored)
        self._schedule_tick()

    def _recovered(self, restored: Restored) -> None:
        """What was durable before the crash must have come back; what was on its way, whole or not at all."""
        log, durable = self.raft.log, self.world.oracle.durable[self.node]
        entries = {index: log.term_at(index) for index in range(log.base_index + 1, log.last_index + 1)}
        found = (restored.hard_state, entries)
        with_lost = durable.copy()
        for persist in self._lost:
            with_lost.write(persist)
        promised = (durable.hard_state, durable.after(log.base_index))
        if found == (with_lost.hard_state, with_lost.after(log.base_index)):
            self.world.oracle.durable[self.node] = with_lost
        elif found != promised:
            self.world.fail(f"{self.node}: {promised} was durable, and {found} came back")
        self.world.oracle.restarted(self.node, restored.hard_state)

    def _nonce(self) -> int:
        return self.world.random.getrandbits(32)

    def crash(self) -> None:
        """kill -9 and a power cut in one: what was not synced may be gone, or torn."""
        if not self.up:
            return
        self.up = False
        self._life += 1
        self._lost = self._in_flight
        if self._in_flight and not self.disk.failing and self.world.random.random() < 0.7:
            self.disk.syncs_lie = True
            self.wal.append(self._in_flight)
        self.disk.crash(self.world.random)

    # --- the one door ---

    def handle(self, event: Event) -> None:
        if not self.up:
            return
        was = self.raft.role
        actions = self.raft.handle(event)
        self.world.count_event()
        self.world.trace(self, event, actions)
        self.world.oracle.after_step(self.raft, actions, was)
        for action in actions:
            self._carry_out(action)
        self._schedule_tick()

    def _carry_out(self, action: Action) -> None:
        match action:
            case Send(message):
                self.world.network.send(message)
            case Persist():
                self._submit(action)
            case Apply(entries):
                self._apply(entries)
            case Restore(meta):
                self._restore(meta)
            case Appended() | Refused() | ReadReady() | ReadRefused():
                self._answer(action)
            case WriteChunk() | FinishSnapshot() | ReadChunk():
                self._submit(action)
            case Stopped():
                self.crash()
            case _:
                pass

    def _answer(self, action: Action) -> None:
        match action:
            case Appended(proposal_id, index, term):
                answer = self._proposed.pop(proposal_id, None)
                if answer is not None:
                    self._proposals[index] = (term, answer)
            case Refused(proposal_id, _, leader):
                answer = self._proposed.pop(proposal_id, None) if proposal_id is not None else None
                if answer is not None:
                    answer(("refused", leader))
            case ReadReady(read_id):
                self._reads.pop(read_id)(("state", self.state))
            case ReadRefused(read_id):
                self._reads.pop(read_id)(("refused", self.raft.leader))

    # --- time ---

    def _schedule_tick(self) -> None:
        if not self.up:
            return
        due = self.raft.deadline_seconds()
        if due < self._tick_at:
            self._tick_at = due
            self.world.at(due, self._tick, self._life)

    def _tick(self, life: int) -> None:
        if life != self._life:
            return
        self._tick_at = float("inf")
        if self.paused_until > self.world.now:
            self._tick_at = self.paused_until
            self.world.at(self.paused_until, self._tick, life)
        elif self.world.now >= self.raft.deadline_seconds():
            self.handle(Tick(self.world.now, self.world.random.random()))
        else:
            self._schedule_tick()

    def receive(self, message: Message) -> None:
        if not self.up:
            return
        if self.paused_until > self.world.now:
            self.world.at(self.paused_until + 0.001, self.receive, message)
            return
        if self.world.random.random() < 0.02:
            message = unpack_message(pack_message(message))
        self.handle(Receive(self.world.now, message))

    # --- the disk's thread ---

    def _submit(self, job: Action | Callable[[], None]) -> None:
        self._jobs.append(job)
        self._next_job()

    def _next_job(self) -> None:
        if self._busy or not self._jobs:
            return
        self._busy = True
        job = self._jobs.popleft()
        if isinstance(job, Persist):
            self._in_flight = [job]
            while self._jobs and isinstance(self._jobs[0], Persist):
                self._in_flight.append(self._jobs.popleft())
        low, high = self.disk_seconds
        delay = low + self.world.random.random() * (high - low)
        self.world.at(self.world.now + delay, self._job_done, self._life, job)

    def _job_done(self, life: int, job: Action | Callable[[], None]) -> None:
        if life != self._life:
            return
        try:
            event = self._do(job)
        except JournalFailed as error:
            self.handle(JournalLost(self.world.now, str(error)))
            return
        self._busy = False
        if event is not None:
            self.handle(event)
        if self.up:
            self._next_job()

    def _do(self, job: Action | Callable[[], None]) -> Event | None:
        now = self.world.now
        match job:
            case Persist():
                self.write(self._in_flight)
                group, self._in_flight = self._in_flight, []
                for persist in group:
                    self.world.oracle.persisted(self.node, persist)
                    for message in persist.messages:
                        self.world.network.send(message)
                return Persisted(now, group[-1].ticket)
            case ReadChunk(target, meta, offset, bytes_max):
                data = self.wal.snapshots.read_part(meta, offset, bytes_max)
                if data is None:
                    return ChunkUnavailable(now, target, meta)
                return ChunkRead(now, target, meta, offset, data)
            case WriteChunk(meta, offset, data):
                self.wal.write_snapshot_part(meta, offset, data)
            case FinishSnapshot(meta):
                whole = self.wal.finish_snapshot(meta)
                return SnapshotReceived(now, meta) if whole else SnapshotRejected(now, meta)
            case _:
                return job()  # type: ignore[operator, func-returns-value]
        return None

    def write(self, group: list[Persist]) -> None:
        self.wal.append(group)

    # --- the state machine ---

    def _apply(self, entries: Any) -> None:
        for entry in entries:
            result = None
            if entry.kind is EntryKind.COMMAND:
                self.state, result = self.apply(self.state, unpack_command(entry.data))
            term, answer = self._proposals.pop(entry.index, (0, None))
            if answer is not None:
                answer(("result", result) if term == entry.term else ("unknown", None))
        self._since_snapshot += len(entries)
        if self._since_snapshot >= SNAPSHOT_ENTRIES:
            self._since_snapshot = 0
            self._take_snapshot()

    def apply(self, state: Catalogue, command: Any) -> Any:
        return apply(state, command)

    def _take_snapshot(self) -> None:
        index = self.raft.applied
        term, data = self.raft.log.term_at(index), snapshot(self.state)
        assert term is not None
        meta = describe(index, term, self.raft.log.membership_at(index), data)

        def save() -> SnapshotTaken | None:
            return SnapshotTaken(self.world.now, meta) if self.wal.save_snapshot(meta, data) else None

        self._submit(save)  # type: ignore[arg-type]

    def _restore(self, meta: SnapshotMeta) -> None:
        self.world.oracle.restored(self.node, meta)
        self.state = restore(self.wal.snapshots.read(meta))
        self._since_snapshot = 0
        for _, answer in self._proposals.values():
            answer(("unknown", None))
        self._proposals = {}

    # --- what clients ask ---

    def propose(self, command: Any, answer: Answer) -> None:
        if not self.up or self.paused_until > self.world.now:
            return
        proposal_id = self.world.fresh_id()
        self._proposed[proposal_id] = answer
        self.handle(Propose(self.world.now, (Proposal(proposal_id, pack_command(command)),)))

    def read(self, answer: Answer) -> None:
        if not self.up or self.paused_until > self.world.now:
            return
        self._last_read += 1  # counted per life: only the nonce keeps lives apart
        read_id = self._last_read
        self._reads[read_id] = answer
        self.handle(Read(self.world.now, read_id))

    @property
    def leads(self) -> bool:
        return self.up and self.raft.role is Role.LEADER

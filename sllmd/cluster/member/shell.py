"""Raft's machine on a real clock, disk and network: events in, actions out.

Everything happens on the event loop, in the machine's order; only the disk works in a thread of its own. A
``Persist`` is begun at once and its messages leave when it is durable. What was agreed goes to ``state``.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from sllmd.cluster.catalogue import Catalogue, pack_command
from sllmd.cluster.catalogue.commands import Command, EpochBegin
from sllmd.cluster.catalogue.results import Result
from sllmd.cluster.member.bell import Bell
from sllmd.cluster.member.disk import Disk
from sllmd.cluster.member.settings import ControlSettings
from sllmd.cluster.member.state import Around, State
from sllmd.cluster.raft import Raft, RaftSettings, RaftStatus, Start
from sllmd.cluster.raft.entries import Membership, SnapshotMeta
from sllmd.cluster.raft.events import (
    Action,
    Appended,
    Apply,
    ChangeMembership,
    ChunkRead,
    ChunkUnavailable,
    Event,
    FinishSnapshot,
    JournalLost,
    LeadershipChanged,
    MembershipChanged,
    Persist,
    Persisted,
    Proposal,
    Propose,
    Read,
    ReadChunk,
    ReadReady,
    ReadRefused,
    Receive,
    Refusal,
    Refused,
    Restore,
    Role,
    Send,
    SnapshotReceived,
    SnapshotRejected,
    SnapshotTaken,
    Stopped,
    Tick,
    TransferFailed,
    TransferLeadership,
    WriteChunk,
)
from sllmd.cluster.raft.messages import Message, pack_message
from sllmd.core.errors import SllmdError
from sllmd.core.ids import NodeId
from sllmd.telemetry.supervising import end_tasks

_log = structlog.get_logger(__name__)

Answers = list[Refusal | None]
"""Of proposals, in their order: why each was not begun; None: it has a place in the leader's log."""


TIMER_SECONDS = 0.001
"""The loop's timers are so coarse; one that goes off early goes off twice."""
NOTE_SECONDS = 1.0
"""What was agreed is written down along with the next entries, or after so long if none come."""
EPOCH, CHANGE = -1, -2
"""Names of proposals that are the shell's own; those of others are counted from 0."""


@dataclass(frozen=True, slots=True)
class Owner:
    """What the shell tells whoever runs it."""

    send: Callable[[Message, bytes], None]
    carried_out: Callable[[Command, Result], None]
    """A command and its result, in the log's order."""
    restored: Callable[[], None]
    """The state jumped ahead: what happened in between shows in it alone."""
    advanced: Callable[[], None]
    changed: Callable[[], None]
    """Leadership or membership."""


class Shell:
    """One life of one member."""

    def __init__(
        self, node: NodeId, disk: Disk, raft: RaftSettings, settings: ControlSettings, owner: Owner
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._disk, self._journal = disk, disk.journal
        self._settings = settings
        self._owner = owner
        self._random = random.Random()
        restored = disk.restored
        self.raft = Raft(
            Start(node, raft, restored, self._loop.time(), self._random.random(), secrets.randbits(64))
        )
        self._state = State(disk, self._around())
        self.lost_reason: str | None = None
        """Why this node agrees to nothing any more."""
        self.changed = Bell()
        self._led_at = float("-inf")
        self._events: deque[Event] = deque()
        self._busy = False
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._late = False
        self._noting: asyncio.TimerHandle | None = None
        self._answers: dict[int, Refusal | None] = {}
        self._proposals: list[tuple[Sequence[bytes], asyncio.Future[Answers]]] = []
        self._reads: dict[int, asyncio.Future[Refusal | None]] = {}
        self._last_read = 0
        self._next_read: asyncio.Future[Refusal | None] | None = None
        self._arm()

    def _around(self) -> Around:
        return Around(
            advanced=self._advanced,
            carried_out=self._owner.carried_out,
            restored=self._owner.restored,
            epoch_changed=self._tell_changed,
            may_read=lambda read_id: self._answer_read(read_id, None),
            saved=lambda meta: self._handle(SnapshotTaken(self._loop.time(), meta)),
            members_at=self._members_at,
            spawn=self._spawn,
        )

    # --- what its owner asks ---

    @property
    def catalogue(self) -> Catalogue:
        """What was agreed, as far as it is carried out here."""
        return self._state.catalogue

    @property
    def position(self) -> int:
        """Of the newest entry in ``catalogue``."""
        return self._state.position

    @property
    def term(self) -> int:
        """Of that entry."""
        return self._state.term

    @property
    def leads(self) -> bool:
        """Whether this node leads, and its epoch stands in the catalogue."""
        return self.raft.role is Role.LEADER and self.catalogue.epoch == self.raft.term

    @property
    def age_seconds(self) -> float:
        """Since this node last heard from whoever decides."""
        if self.raft.role is Role.LEADER:
            return 0.0
        return self._loop.time() - max(self.raft.leader_contact, self._led_at)

    def begin(self) -> None:
        """Carry out what was agreed when this node last ran: nobody needs to be asked about that."""
        self._handle(Tick(self._loop.time(), self._random.random()))

    def status(self) -> RaftStatus:
        """What there is to see of raft."""
        return self.raft.status()

    def receive(self, message: Message) -> None:
        """A message arrived."""
        self._handle(Receive(self._loop.time(), message))

    def propose(self, commands: Sequence[bytes]) -> asyncio.Future[Answers]:
        """Give commands a place in the log; those of one turn of the loop go together."""
        answers: asyncio.Future[Answers] = self._loop.create_future()
        if not self._proposals:
            self._loop.call_soon(self._propose)
        self._proposals.append((commands, answers))
        return answers

    def read(self) -> asyncio.Future[Refusal | None]:
        """None once ``catalogue`` is no older than this call; reads of one turn of the loop go together."""
        if self._next_read is None:
            self._next_read = self._loop.create_future()
            self._loop.call_soon(self._read)
        return self._next_read

    def change(self, wanted: Membership) -> Refusal | None:
        """Begin to go over to this membership; says why not."""
        self._handle(ChangeMembership(self._loop.time(), CHANGE, wanted))
        return self._answers.pop(CHANGE, Refusal.NO_LEADER)

    def transfer(self, target: NodeId) -> None:
        """Begin to hand the leadership to this voter."""
        self._handle(TransferLeadership(self._loop.time(), target))

    async def close(self) -> None:
        """Stop; what is on its way to the disk still gets there."""
        self._closed = True
        self._state.stop()
        if self._timer is not None:
            self._timer.cancel()
        if self._noting is not None:
            self._noting.cancel()
            self._note()
        for _, answers in self._proposals:
            if not answers.done():
                answers.set_result([Refusal.NO_LEADER])
        for answer in [*self._reads.values(), *([self._next_read] if self._next_read else [])]:
            if not answer.done():
                answer.set_result(Refusal.NO_LEADER)
        await end_tasks(*self._tasks)
        await self._disk.close()
        self.changed.ring()

    # --- the loop ---

    def _handle(self, event: Event) -> None:
        if self._closed:
            return
        self._events.append(event)
        if self._busy:
            return  # whoever is carrying out actions takes it next
        self._busy = True
        try:
            while self._events:
                for action in self._decide(self._events.popleft()):
                    self._carry_out(action)
        finally:
            self._busy = False
        if self.raft.role is Role.LEADER:
            self._led_at = self._loop.time()
        self._arm()

    def _decide(self, event: Event) -> list[Action]:
        try:
            return self.raft.handle(event)
        except Exception as error:  # noqa: BLE001  a machine that broke its own rules may promise nothing more
            _log.exception("raft's machine failed", message=type(event).__name__)
            self.raft.role = Role.STOPPED
            return [Stopped(f"raft's machine failed: {type(error).__name__}: {error}")]

    def _carry_out(self, action: Action) -> None:  # noqa: C901  a table of one line each
        match action:
            case Send(message):
                self._owner.send(message, pack_message(message))
            case Persist():
                self._persist(action)
            case Apply() | Restore() | ReadReady():
                self._state.take(action)
                self._note_soon()
            case Appended(proposal_id):
                self._answers[proposal_id] = None
            case Refused(proposal_id, reason) if proposal_id == EPOCH:
                self._loop.call_later(self._settings.retry_seconds, self._begin_epoch)
            case Refused(int() as proposal_id, reason):
                self._answers[proposal_id] = reason
            case ReadRefused(read_id, reason):
                self._answer_read(read_id, reason)
            case LeadershipChanged():
                self._leadership_changed(action)
            case MembershipChanged() | TransferFailed() | Refused():
                self._tell_changed()
            case ReadChunk():
                self._spawn(self._read_chunk(action))
            case WriteChunk(meta, offset, data):
                self._spawn(self._journal.write_snapshot_part(meta, offset, data))
            case FinishSnapshot(meta):
                self._spawn(self._finish_snapshot(meta))
            case Stopped(reason):
                self._stopped(reason)

    def _advanced(self) -> None:
        self._owner.advanced()
        self.changed.ring()

    def _members_at(self, index: int) -> Membership | None:
        log = self.raft.log
        return None if index < log.base_index or self.lost_reason else log.membership_at(index)

    def _tell_changed(self) -> None:
        self._owner.changed()
        self.changed.ring()

    def _leadership_changed(self, action: LeadershipChanged) -> None:
        if action.role is Role.LEADER:
            self._begin_epoch()
        self._tell_changed()

    def _begin_epoch(self) -> None:
        """A new leader's first command: until it is applied, its orders are refused."""
        if self.raft.role is Role.LEADER and self.catalogue.epoch != self.raft.term:
            command = pack_command(Command(EpochBegin(self.raft.term)))
            self._handle(Propose(self._loop.time(), (Proposal(EPOCH, command),)))

    def _stopped(self, reason: str) -> None:
        self.lost_reason = reason
        _log.error(
            "this node agrees to nothing any more",
            reason=reason,
            hint="it goes on serving; mend the disk under its data directory, then restart it",
        )
        self._tell_changed()

    # --- time ---

    def _arm(self) -> None:
        """Have the timer go off no later than is due; one that goes off early sets itself again."""
        due = self.raft.deadline_seconds()
        if due >= self._timer_at or self._closed or self.raft.role is Role.STOPPED:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_at(due + TIMER_SECONDS, self._tick)

    def _tick(self) -> None:
        now, self._timer_at = self._loop.time(), float("inf")
        late_seconds = now - self.raft.deadline_seconds()
        if late_seconds > self._settings.late_seconds_max and not self._late:
            # The whole process stood still. What others sent meanwhile is still to be read.
            self._late = True
            self._timer_at = now + self.raft.settings.heartbeat_seconds
            self._timer = self._loop.call_at(self._timer_at, self._tick)
        elif late_seconds >= 0:
            self._late = False
            self._handle(Tick(now, self._random.random()))
        else:
            self._late = False
            self._arm()

    # --- proposals and reads ---

    def _propose(self) -> None:
        waiting, self._proposals = self._proposals, []
        commands = [command for group, _ in waiting for command in group]
        self._answers.clear()
        proposals = tuple(Proposal(number, command) for number, command in enumerate(commands))
        self._handle(Propose(self._loop.time(), proposals))
        answers = [self._answers.get(number, Refusal.NO_LEADER) for number in range(len(commands))]
        self._answers.clear()
        start = 0
        for group, answer in waiting:
            if not answer.done():
                answer.set_result(answers[start : start + len(group)])
            start += len(group)

    def _read(self) -> None:
        answer, self._next_read = self._next_read, None
        if answer is None or answer.done():
            return
        self._last_read += 1
        self._reads[self._last_read] = answer
        self._handle(Read(self._loop.time(), self._last_read))
        if self.raft.role is Role.STOPPED or self._closed:
            self._answer_read(self._last_read, Refusal.NO_LEADER)

    def _answer_read(self, read_id: int, refusal: Refusal | None) -> None:
        answer = self._reads.pop(read_id, None)
        if answer is not None and not answer.done():
            answer.set_result(refusal)

    # --- the disk ---

    def _persist(self, persist: Persist) -> None:
        written = self._journal.persist(persist)
        written.add_done_callback(lambda done: self._persisted(persist, done))

    def _persisted(self, persist: Persist, done: asyncio.Future[None]) -> None:
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            self._lose(error)
            return
        if self._closed:
            return
        for message in persist.messages:
            self._owner.send(message, pack_message(message))
        self._handle(Persisted(self._loop.time(), persist.ticket))

    def _note_soon(self) -> None:
        if self._noting is None:
            self._noting = self._loop.call_later(NOTE_SECONDS, self._note)

    def _note(self) -> None:
        """Have the disk know what is agreed; the journal writes nothing that it knows already."""
        self._noting = None
        noted = self._journal.persist(Persist(0, None, None, (), (), self.raft.commit))
        noted.add_done_callback(self._noted)

    def _noted(self, done: asyncio.Future[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self._lose(error)

    def _lose(self, error: BaseException) -> None:
        self._handle(JournalLost(self._loop.time(), str(error) or type(error).__name__))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Disk work that the loop does not wait for; begun in this order."""
        task = self._loop.create_task(self._watch(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # if it was cancelled before it began

    async def _watch(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except SllmdError as error:
            self._lose(error)
        except Exception:  # noqa: BLE001  a supervisor: it would be missed much later
            _log.exception("work beside the journal crashed")

    async def _read_chunk(self, wanted: ReadChunk) -> None:
        target, meta, offset = wanted.target, wanted.meta, wanted.offset
        data = await self._journal.read_snapshot_part(meta, offset, wanted.bytes_max)
        now = self._loop.time()
        if data is None:
            self._handle(ChunkUnavailable(now, target, meta))
        else:
            self._handle(ChunkRead(now, target, meta, offset, data))

    async def _finish_snapshot(self, meta: SnapshotMeta) -> None:
        whole = await self._journal.finish_snapshot(meta)
        now = self._loop.time()
        self._handle(SnapshotReceived(now, meta) if whole else SnapshotRejected(now, meta))

"""One generation, carried from place to place until it ends: its client sees one sequence of events.

Owns: the generation's ledger, the task that listens to its present source, and what waits for its client.
Knows nothing of text. A source that is lost is replaced: by the target of a move that is under way, or by the
next place that takes the generation, which goes on from the ledger.
Invariants: one source at a time is heard, the present hop's; the switch to another is one step of the event
loop; what came is delivered once and in order; leaving the iteration ends everything, in every state; a
client that is slow stops its source; a source that stays silent is given up.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace

import structlog

from sllmd.core.errors import (
    InsufficientCapacity,
    NotHere,
    PeerError,
    ProtocolError,
    SllmdError,
    StartupTimeout,
    WorkerLost,
)
from sllmd.core.ids import GenerationId, NodeId
from sllmd.engine.protocol import EngineEvent, FailedEvent, TokenEvent
from sllmd.migration.failover import Patience, Pulse, is_misfit, is_places_fault, is_worth_waiting
from sllmd.migration.ledger import Ledger, Verdict
from sllmd.migration.mover import Ended, Event, Resumed, SourceLost
from sllmd.migration.settings import MigrationSettings
from sllmd.roles.berth import Berth
from sllmd.roles.dispatch import Places
from sllmd.roles.generation import Known
from sllmd.roles.passage import Passage, Result
from sllmd.roles.place import Place
from sllmd.roles.work import Granted, Happening, Work

_log = structlog.get_logger(__name__)

INBOX_MAX = 256
"""Events that wait for a slow client before its source has to wait, too."""
PASSAGES_MAX = 32
"""Changes of place that one generation remembers."""


@dataclass(frozen=True, slots=True)
class _Refused:
    """A place does not take the generation, or no longer."""

    reason: SllmdError
    began: bool
    """Whether it ran there."""


@dataclass(slots=True)
class _Source:
    """What runs the generation."""

    hop: int
    place: Place
    happenings: AsyncGenerator[Happening, None]
    berth: Berth | None = None
    """Where it runs on one; it goes with the source."""
    began: bool = False
    """Whether it was granted a replica."""

    @property
    def where(self) -> str:
        """For people."""
        return f"node {self.place.node}" if self.place.node else "this node"


class Carriage:
    """See the module."""

    def __init__(
        self,
        work: Work,
        places: Places,
        settings: MigrationSettings,
        on_passage: Callable[[Carriage, Passage], None] = lambda _carriage, _passage: None,
        on_stall: Callable[[Carriage], None] = lambda _carriage: None,
        known: Iterable[Known] = (),
    ) -> None:
        """``known``: its events so far, where another router began it; ``on_passage``: told of each change of
        place, or try at one, when it is over; ``on_stall``: its source is quiet for longer than can be
        expected."""
        self.work = work
        self.ledger = Ledger(work.state)
        self.place: Place | None = None
        """Where the present source is, once it has a replica."""
        self.passages: deque[Passage] = deque(maxlen=PASSAGES_MAX)
        self.tell_move: Callable[[Event], None] | None = None
        """How the move that is under way hears of the source; its mover sets it."""
        self._places = places
        self._settings = settings
        self._on_passage = on_passage
        self._on_stall = on_stall
        self._inbox: deque[Happening] = deque()
        self._arrived: asyncio.Future[None] | None = None
        self._taken: asyncio.Future[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._berths: set[Berth] = set()
        self._patience = Patience(settings)
        self._pulse = Pulse(settings, time.monotonic())
        self._stall_timer: asyncio.TimerHandle | None = None
        self._hearing: asyncio.Timeout | None = None
        """Ends the hearing of the present source, whatever it does."""
        self._silent: set[NodeId] = set()
        """Nodes where it was given up because no token came."""
        self._overdue = False
        """At the last look the source should have been given up: if it is so at the next, this process was
        not held up itself."""
        self._resumed = 0
        self._open: Passage | None = None
        """A change of place whose first token has not come yet."""
        self.last_token_seconds = 0.0
        self.closed = False
        """Its client has what there is, or left."""
        self.hops = 0
        """Changes of place that came about."""

        for event in known:
            if self.ledger.take(self.ledger.hop, event) is Verdict.ACCEPTED:
                self._inbox.append(event)

    # -- what the client's side sees -----------------------------------------------------------

    async def happenings(self) -> AsyncGenerator[Happening, None]:
        """``Granted`` once per place, then the generation's events, each once.

        Raises what the first place gave as its reason (a node's being away is none, if another gave one), and
        what the last one gave when there is no going on.
        """
        self._listen(self._seek())
        try:
            while True:
                while self._inbox:
                    happening = self._inbox.popleft()
                    self._wake_source()
                    if isinstance(happening, TokenEvent):
                        self.ledger.deliver(happening.index + 1)
                    yield happening
                if self._listener is not None and self._listener.done():
                    if self._listener.cancelled():  # by nobody here: its client must hear of it all the same
                        raise WorkerLost("what the generation waited for was called off")
                    self._listener.result()
                    return
                self._arrived = asyncio.get_running_loop().create_future()
                await self._arrived
        finally:
            await self._close()

    async def _close(self) -> None:
        """End whatever is under way; returns when it has ended."""
        self.closed = True
        self._tell(Ended("the generation is over" if self.ledger.over else "the client left"))
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        if self._listener is not None and not self._listener.done():
            self._leave(self._listener)
        self._close_passage("called_off", "it ended before its first token there")
        if self._leaving:
            await asyncio.wait(self._leaving)
        for berth in list(self._berths):  # of a listener that was cancelled before it began
            await berth.aclose()

    def work_from_here(self) -> Work:
        """What another place needs to go on from the ledger. Each has an id of its own: the place that it
        leaves may still have the last one."""
        state = self.ledger.state()
        self._resumed += 1
        state.generation_id = GenerationId(f"{self.ledger.generation_id}.{self._resumed}")
        return replace(self.work, state=state)

    @property
    def _known_tokens(self) -> int:
        return len(self.ledger.prompt_ids) + self.ledger.tokens

    # -- sources -------------------------------------------------------------------------------

    def switch(self, place: Place, berth: Berth, passage: Passage) -> None:
        """The commit point of a move: from now on ``place`` has the generation. Waits for nothing."""
        hop = self.ledger.switch()
        source = _Source(hop, place, berth.commit(self.ledger.output_ids()), berth, began=True)
        self._berths.add(berth)
        if self._listener is not None:
            self._leave(self._listener)
        self._close_passage("called_off", "the target of a move was ready first")
        passage.tokens = self._known_tokens
        self._begin_passage(passage)
        self._put(berth.granted)
        self.place = place
        self._listen(self._seek(source))

    def _listen(self, seeking: Coroutine[None, None, None]) -> None:
        self._pulse.restart(time.monotonic())
        self._listener = asyncio.get_running_loop().create_task(seeking)
        self._listener.add_done_callback(lambda _: self._wake_client())

    def _leave(self, listener: asyncio.Task[None]) -> None:
        """It is heard no more; its source is cancelled without anybody waiting for it."""
        listener.cancel()
        self._leaving.add(listener)
        listener.add_done_callback(self._left)

    def _left(self, listener: asyncio.Task[None]) -> None:
        self._leaving.discard(listener)
        if not listener.cancelled() and listener.exception() is not None:
            _log.info("a source ended after the switch", reason=str(listener.exception()))

    async def _seek(self, source: _Source | None = None) -> None:
        """From place to place until the generation is over; begins with ``source``, if there is one."""
        lost: SllmdError | None = None
        if self.ledger.over:  # another router has seen its end
            return
        if source is not None:
            refused = await self._hear(source)
            if refused is None:
                return
            lost = self._lose(source, refused)
            if self._is_replaced():
                return
        deadline_seconds = time.monotonic() + self._settings.resume_timeout
        while True:
            reason = await self._try_places(lost)
            if reason is None or self._is_replaced():
                return
            if reason.began:
                lost = reason.reason
                deadline_seconds = time.monotonic() + self._settings.resume_timeout
                continue
            may_wait = is_worth_waiting(reason.reason)
            if lost is None:
                raise reason.reason
            if not may_wait or time.monotonic() > deadline_seconds:
                raise WorkerLost(f"{lost}; and no place takes the generation over: {reason.reason}")
            await asyncio.sleep(self._settings.resume_pause)

    def _is_replaced(self) -> bool:
        """Whether a move has taken over from the task that asks."""
        return self._listener is not asyncio.current_task()

    async def _try_places(self, lost: SllmdError | None) -> _Refused | None:
        """Ask one place after the other; None: the generation is over. Raises the caller's errors."""
        work = self.work_from_here() if self.ledger.tokens else self.work
        found: SllmdError | None = None
        for place in self._places.choose(work):
            if place.node in self._silent:
                continue
            hop = self.ledger.hop
            if lost is not None or found is not None:
                hop = self.ledger.switch()
                work = self.work_from_here()
            source = _Source(hop, place, place.run(work))
            refused = await self._hear(source)
            if refused is None:
                return None
            reason = refused.reason
            if lost is None and (not is_places_fault(reason) or isinstance(reason, StartupTimeout)):
                raise reason
            self._places.failed(place, work, reason)
            if refused.began:
                return _Refused(self._lose(source, refused), began=True)
            _log.info("generation not run there", node=place.node, model=work.model, reason=str(reason))
            if found is None or isinstance(found, PeerError):
                found = reason
        return _Refused(found or NotHere(f"no node can run `{work.model}` now"), began=False)

    def _lose(self, source: _Source, refused: _Refused) -> SllmdError:
        """A source that ran is lost: account for it. Raises its reason when there have been too many."""
        reason = refused.reason
        if isinstance(reason, PeerError):
            node = source.place.node
            reason = WorkerLost(f"node {node}, where the generation ran, is gone: {reason}")
        if source.hop != self.ledger.hop:
            return reason
        self._close_passage("failed", str(reason))
        self.place = None
        self._tell(SourceLost(str(reason)))
        if source.hop != self.ledger.hop:  # a move took over at once, and this task is on its way out
            return reason
        if not self._patience.may_resume(self.ledger.tokens):
            raise reason
        _log.warning("source lost", generation=self.work.request_id, reason=str(reason))
        passage = Passage("failover", str(reason), source.place.node)
        passage.tokens = self._known_tokens
        self._begin_passage(passage)
        return reason

    async def _hear(self, source: _Source) -> _Refused | None:
        """Listen until the generation is over (None), or the source is lost, or another hop took over."""
        try:
            async with asyncio.timeout(None) as hearing, aclosing(source.happenings) as happenings:
                self._hearing = hearing
                async for happening in happenings:
                    self._take(source, happening)
                    if self.ledger.over:
                        return None
                    if len(self._inbox) >= INBOX_MAX:
                        await self._room()
            raise WorkerLost(f"the generation ended without a reason on {source.where}")
        except TimeoutError:
            if not hearing.expired():
                raise
            self._silent.add(source.place.node)
            return _Refused(WorkerLost(f"no token came from {source.where} for too long"), began=source.began)
        except SllmdError as error:
            return _Refused(error, began=source.began)
        finally:
            if source.berth is not None:
                await source.berth.aclose()
                self._berths.discard(source.berth)

    # -- events --------------------------------------------------------------------------------

    def _take(self, source: _Source, happening: Happening) -> None:
        if isinstance(happening, Granted):
            if source.hop == self.ledger.hop:
                source.began = True
                self.place = source.place
                self._pulse.restart(time.monotonic())
                if self._stall_timer is None:
                    self._watch_from(time.monotonic())
                self._note_target(source.place.node)
                self._put(happening)
                self._tell(Resumed())
            return
        if isinstance(happening, FailedEvent) and is_misfit(happening, tokens=self.ledger.tokens):
            source.began = False
            raise InsufficientCapacity(happening.message)
        self._judge(source, happening)

    def _judge(self, source: _Source, event: EngineEvent) -> None:
        match self.ledger.take(source.hop, event):
            case Verdict.ACCEPTED:
                self._put(event)
                if isinstance(event, TokenEvent):
                    self._note_token()
            case Verdict.GAP:
                raise ProtocolError(f"a source left out tokens after the {self.ledger.tokens}th")

    def _note_token(self) -> None:
        now_seconds = time.monotonic()
        self._pulse.beat(now_seconds)
        if self._open is not None:
            self._open.pause_ms = (now_seconds - (self.last_token_seconds or now_seconds)) * 1000
            self.hops += 1
            self._close_passage("done")
        self.last_token_seconds = now_seconds

    def _put(self, happening: Happening) -> None:
        self._inbox.append(happening)
        self._wake_client()

    def _tell(self, event: Event) -> None:
        if self.tell_move is not None:
            self.tell_move(event)

    # -- who waits for whom --------------------------------------------------------------------

    def _wake_client(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def _wake_source(self) -> None:
        if self._taken is not None and not self._taken.done() and len(self._inbox) < INBOX_MAX:
            self._taken.set_result(None)

    async def _room(self) -> None:
        """Wait until the client has read some."""
        self._taken = asyncio.get_running_loop().create_future()
        try:
            await self._taken
        finally:
            self._taken = None

    # -- a source that is quiet ----------------------------------------------------------------

    def _watch_from(self, now_seconds: float) -> None:
        moments = (self._pulse.due_seconds(), self._pulse.end_seconds())
        ahead = [moment - now_seconds for moment in moments if moment is not None and moment > now_seconds]
        wait_seconds = min([self._settings.stall_min, *ahead])
        self._stall_timer = asyncio.get_running_loop().call_later(wait_seconds, self._look_for_stall)

    def _look_for_stall(self) -> None:
        """Tell of a stall while it lasts, and end it at last; a client that does not read is none."""
        if self.ledger.over:
            return
        now_seconds = time.monotonic()
        due_seconds = self._pulse.due_seconds()
        waits_for_source = self._taken is None and self.place is not None
        before, self._overdue = self._overdue, waits_for_source and now_seconds >= self._pulse.end_seconds()
        if before and self._overdue:
            self._give_up()
        elif waits_for_source and due_seconds is not None and now_seconds >= due_seconds:
            self._on_stall(self)
        self._watch_from(now_seconds)

    def _give_up(self) -> None:
        """The present source is lost."""
        if self._hearing is not None and not self._hearing.expired():
            self._hearing.reschedule(asyncio.get_running_loop().time())

    # -- changes of place ----------------------------------------------------------------------

    def _begin_passage(self, passage: Passage) -> None:
        self._close_passage("failed", "the next place was lost, too")
        self._open = passage
        if passage not in self.passages:
            self.passages.append(passage)

    def _note_target(self, node: NodeId) -> None:
        if self._open is not None:
            self._open.target = node

    def _close_passage(self, result: Result, outcome: str | None = None) -> None:
        passage, self._open = self._open, None
        if passage is not None:
            passage.end(result, outcome)
            self._on_passage(self, passage)

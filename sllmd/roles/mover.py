"""Moves generations of this node's router to other places, few at a time where they are long.

Owns: the moves under way. One is a machine (``migration.mover``), and here are its hands: the berth at the
target, the rounds, the clock. The switch itself is ``Carriage.switch``. A generation has one move at a time.
A target that is slow to get ready delays nobody else's move: turns are for what targets compute.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack

import structlog

from sllmd.core.errors import Conflict, RecordNotFound, SllmdError
from sllmd.migration.mover import (
    Action,
    Commit,
    Ended,
    Event,
    FailOver,
    Held,
    Late,
    Move,
    Release,
    TargetFailed,
    Warm,
    Warmed,
)
from sllmd.migration.settings import MigrationSettings
from sllmd.roles.berth import Berth
from sllmd.roles.carriage import Carriage
from sllmd.roles.dispatch import Places
from sllmd.roles.passage import Kind, Passage, Result
from sllmd.roles.place import Place
from sllmd.roles.status import MovesStatus
from sllmd.roles.turns import Turns

_log = structlog.get_logger(__name__)

PassageObserver = Callable[[Carriage, Passage], None]


class Moving:
    """A move under way."""

    def __init__(
        self,
        carriage: Carriage,
        target: Place,
        passage: Passage,
        settings: MigrationSettings,
        turns: Turns,
    ) -> None:
        """``turns``: one is taken from having a berth to the switch."""
        ledger = carriage.ledger
        self.passage = passage
        self._carriage = carriage
        self._target = target
        passage.target = target.node
        self._machine = Move(
            settings,
            tokens=ledger.tokens,
            tokens_max=ledger.tokens + ledger.remaining,
            now_seconds=time.monotonic(),
        )
        self._turns = turns
        self._turn = AsyncExitStack()
        self._berth: Berth | None = None
        self._task: asyncio.Task[None] | None = None
        """What the target is asked just now."""
        self._over = asyncio.Event()
        self._timeout_seconds = settings.move_timeout

    async def run(self) -> None:
        """From asking for a berth to the switch, or until it turns out not to come about."""
        carriage = self._carriage
        if carriage.ledger.over or carriage.closed or carriage.place is None:
            self.passage.end("called_off", "the generation is over, or has lost its place")
            return
        carriage.tell_move = self.tell
        carriage.passages.append(self.passage)
        timer = asyncio.get_running_loop().call_later(self._timeout_seconds, self.tell, Late())
        try:
            self._start(self._hold())
            await self._over.wait()
        except asyncio.CancelledError:
            self.tell(Ended("it was called back"))
            raise
        finally:
            timer.cancel()
            carriage.tell_move = None
            await self._clean_up()

    def tell(self, event: Event) -> None:
        """What happened; what follows from it is done at once."""
        for action in self._machine.handle(event):
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        match action:
            case Warm():
                self._start(self._warm())
            case Commit():
                self._commit()
            case Release(reason, called_off):
                self.passage.end("called_off" if called_off else "failed", reason)
                self._over.set()
            case FailOver():
                pass  # whoever told of the loss is looking for a place already

    def _commit(self) -> None:
        berth, self._berth = self._berth, None
        assert berth is not None, "only a target that is held is committed to"
        self.passage.rounds = self._machine.rounds
        self._carriage.switch(self._target, berth, self.passage)
        self._over.set()

    def _start(self, asking: Coroutine[None, None, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(asking)

    async def _hold(self) -> None:
        try:
            self._berth = await self._target.berth(self._carriage.work_from_here())
        except SllmdError as error:
            self.tell(TargetFailed(str(error)))
            return
        ledger = self._carriage.ledger
        await self._turn.enter_async_context(self._turns.turn(len(ledger.prompt_ids) + ledger.tokens))
        self.tell(Held(ledger.tokens, time.monotonic()))

    async def _warm(self) -> None:
        assert self._berth is not None, "a target is held before it is warmed"
        try:
            await self._berth.warm(self._carriage.ledger.output_ids())
        except SllmdError as error:
            self.tell(TargetFailed(str(error)))
            return
        self.tell(Warmed(self._carriage.ledger.tokens, time.monotonic()))

    async def _clean_up(self) -> None:
        """Take back what was asked; let the target go unless the generation runs there now."""
        self.passage.rounds = self._machine.rounds
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._turn.aclose()
        if self._berth is not None:
            await self._berth.aclose()


class Mover:
    """See the module."""

    def __init__(self, places: Callable[[], Places], settings: MigrationSettings) -> None:
        """``places``: who knows where generations may run."""
        self.observers: list[PassageObserver] = []
        """Told of every change of place, and of tries at one, when it is over."""
        self._places = places
        self._settings = settings
        self._turns = Turns(count_max=settings.moves_max, size_max=settings.moves_tokens_max)
        self._moving: dict[Carriage, Moving] = {}
        self._background: set[asyncio.Task[Passage]] = set()
        self._results: Counter[tuple[Kind, Result]] = Counter()
        self._rounds = self._tokens = 0
        self._pause_ms_max = 0.0

    @property
    def count(self) -> int:
        """Moves under way or waiting for their turn."""
        return len(self._moving)

    def status(self) -> MovesStatus:
        """What has come of all of them."""
        results = self._results
        return MovesStatus(
            under_way=self.count,
            moved=results["move", "done"],
            resumed=results["failover", "done"],
            called_off=results["move", "called_off"] + results["failover", "called_off"],
            failed=results["move", "failed"] + results["failover", "failed"],
            rounds=self._rounds,
            tokens=self._tokens,
            pause_ms_max=self._pause_ms_max,
        )

    async def move(self, carriage: Carriage, target: Place | None, reason: str) -> Passage:
        """Move a generation; returns when it runs there, or when that did not come about.

        ``target`` None: the best other place. Raises Conflict when it is there, moves already, or has not
        begun; RecordNotFound when there is no other place.
        """
        passage = self._check(carriage, target, reason)
        moving = Moving(carriage, target or self._another(carriage), passage, self._settings, self._turns)
        self._moving[carriage] = moving
        try:
            await moving.run()
        finally:
            del self._moving[carriage]
        if passage.result == "running":
            await passage.over.wait()
        else:
            self.observe(carriage, passage)
        return passage

    def move_soon(self, carriage: Carriage, reason: str) -> None:
        """Begin a move to the best other place, if there is one, and wait for nothing."""
        try:
            self._check(carriage, None, reason)
            target = self._another(carriage)
        except SllmdError:
            return
        task = asyncio.get_running_loop().create_task(self.move(carriage, target, reason))
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Passage]) -> None:
        self._background.discard(task)
        if not task.cancelled() and isinstance(task.exception(), SllmdError):
            _log.info("a move did not begin", reason=str(task.exception()))

    def _check(self, carriage: Carriage, target: Place | None, reason: str) -> Passage:
        if carriage in self._moving:
            raise Conflict("this generation moves already")
        if carriage.place is None:
            raise Conflict("this generation runs nowhere yet")
        if target is not None and target.node == carriage.place.node:
            raise Conflict("this generation runs there already")
        return Passage("move", reason, carriage.place.node)

    def _another(self, carriage: Carriage) -> Place:
        assert carriage.place is not None
        place = self._places().elsewhere(carriage.work, carriage.place.node)
        if place is None:
            raise RecordNotFound(f"no other node can run `{carriage.work.model}` now")
        return place

    def observe(self, carriage: Carriage, passage: Passage) -> None:
        """A change of place is over, or did not come about."""
        self._results[passage.kind, passage.result] += 1
        self._rounds += passage.rounds
        if passage.result == "done":
            self._tokens += passage.tokens
            self._pause_ms_max = max(self._pause_ms_max, passage.pause_ms or 0.0)
        for observer in self.observers:
            observer(carriage, passage)

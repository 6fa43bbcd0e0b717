"""A stream that outlives its client's connection.

Owns: the task that runs its choices, and everything that they have said, for whoever reads it from the
beginning or from where it broke off. Invariants: a delta is there for a reader once the stream's keeper has
the tokens, or is late; one reader at a time, the one that came last; without a reader it is cancelled when
the grace is over; a stream that was handed over runs no more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

from sllmd.api.choices import Choices
from sllmd.api.forms import Form
from sllmd.core.errors import Conflict, NodeDraining
from sllmd.engine.protocol import TokenEvent
from sllmd.migration.ledger import Ledger
from sllmd.migration.mirror import Item
from sllmd.roles.generation import Delta
from sllmd.roles.mirror import Mirrored
from sllmd.roles.resumption import Head, Resumption, known_items, ledger_items
from sllmd.telemetry.metrics import Metrics

_Item = tuple[int, Delta]


class KeptStream:
    """See the module; a ``roles.resumption.Living``."""

    def __init__(
        self,
        resumption: Resumption,
        stream_id: str,
        head: Head,
        form: Form,
        choices: Choices,
        metrics: Metrics,
        *,
        term: int = 1,
    ) -> None:
        """Raises ProtocolError when it is too long to be resumed."""
        self.stream_id = stream_id
        self.term = term
        self.key = head.key
        self.head = head.pack()
        self.form = form
        self.choices = choices
        self.over = False
        self._requests = head.requests
        self._resumption = resumption
        self._metrics = metrics
        self._began_seconds = time.monotonic()
        self._mirrored: Mirrored | None = None
        self._fresh: list[_Item] = []
        """Said, and not told to the keeper."""
        self._said: list[_Item] = []
        """What a reader may have."""
        self._failure: Exception | None = None
        self._lost: Exception | None = None
        """Why no reader gets any more of it."""
        self._ended = False
        self._reader: object | None = None
        self._came, self._began, self._changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> bool:
        """Run it; False when this node has too many."""
        self._mirrored = self._resumption.add(self)
        if self._mirrored is None:
            return False
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._publish(self._mirrored))]
        self._wait(self._resumption.settings.grace)
        return True

    # -- what its keeper is told: see ``roles.mirror.Stream`` -------------------------------------

    def counts(self) -> Sequence[int]:
        """Items of each choice so far."""
        return [self._count(choice) for choice in range(len(self._requests))]

    def items(self, choice: int, start: int) -> Sequence[Item]:
        """Those of one choice from ``start`` on."""
        known, ledger = self._requests[choice].known, self._ledger(choice)
        if start >= len(known):
            return ledger_items(ledger, start) if ledger is not None else []
        later = ledger_items(ledger, len(known)) if ledger is not None else []
        return [*known_items(known[start:]), *later]

    def taken_away(self) -> None:
        """Another node has the stream now."""
        self._lose(Conflict("this stream goes on through another node now", code="resumed_elsewhere"))

    def token_ids(self, choice: int, start: int, end: int) -> Sequence[int]:
        """Tokens of a choice."""
        ledger = self._ledger(choice)
        if ledger is not None:
            return ledger.output_ids(start)[: end - start]
        known = self._requests[choice].known[start:end]
        return [event.token_id for event in known if isinstance(event, TokenEvent)]

    def _count(self, choice: int) -> int:
        ledger, known = self._ledger(choice), len(self._requests[choice].known)
        if ledger is None:
            return known
        return max(known, ledger.tokens or int(ledger.finish_reason is not None))

    def _ledger(self, choice: int) -> Ledger | None:
        carriage = self.choices.generations[choice].carriage
        return carriage.ledger if carriage is not None else None

    # -- running -------------------------------------------------------------------------------

    async def _run(self) -> None:
        choices = self.choices
        try:
            async with choices:
                async for said in choices:
                    self._fresh.append(said)
                    self._came.set()
        except Exception as error:  # noqa: BLE001 - carried to the one who reads
            self._failure = error
        finally:
            self._ended = True
            self._came.set()
            choices.record(self._metrics, self.form.shape.model, self._began_seconds)

    async def _publish(self, mirrored: Mirrored) -> None:
        """What was said goes to the keeper first, then to whoever reads."""
        while not self.over:
            await self._came.wait()
            self._came.clear()
            fresh, self._fresh = self._fresh, []
            self.over = self._ended
            if fresh or self.over:
                await mirrored.tell()
            self._said += fresh
            self._wake_reader()
        if self._reader is None:
            self._wait(self._resumption.settings.kept)

    async def hand_over(self) -> None:
        """End here for good, but for what is known; returns when nothing of it runs."""
        self._lose(NodeDraining("this stream goes on through another node", retry_after_seconds=1))
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _lose(self, reason: Exception) -> None:
        self._lost = self._lost or reason
        self._resumption.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        self._wake_reader()

    # -- reading -------------------------------------------------------------------------------

    async def began_within(self, seconds: float) -> bool:
        """Wait that long until something is said, or fails; whether it was."""
        try:
            async with asyncio.timeout(seconds):
                await self._began.wait()
        except TimeoutError:
            return False
        return True

    async def read(self) -> AsyncGenerator[_Item, None]:
        """Everything said, from the beginning. Raises what ended it, and Conflict once another reads."""
        me = self._reader = object()
        if self._timer is not None:
            self._timer.cancel()
        self._wake_reader()
        position = 0
        try:
            while True:
                while position < len(self._said) and self._reader is me:
                    position += 1
                    yield self._said[position - 1]
                if self._lost is not None:
                    raise self._lost
                if self._reader is not me:
                    raise Conflict("this stream is read by another connection now", code="resumed_elsewhere")
                if self.over and position == len(self._said):
                    if self._failure is not None:
                        raise self._failure
                    return
                await self._changed.wait()
        finally:
            if self._reader is me:
                self._reader = None
                settings = self._resumption.settings
                self._wait(settings.kept if self.over else settings.grace)

    def _wake_reader(self) -> None:
        if self._said or self.over or self._lost is not None:
            self._began.set()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _wait(self, seconds: float) -> None:
        """For a reader; without one it ends."""
        if self._lost is None:
            if self._timer is not None:
                self._timer.cancel()
            reason = Conflict("nobody came back for this stream in time", code="resumed_elsewhere")
            self._timer = asyncio.get_running_loop().call_later(seconds, self._lose, reason)

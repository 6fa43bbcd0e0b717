"""What the daemon holds of a loaded copy: a ``Replica``; and the in-process one for the fake engine.

Owns: the promise towards routers, and the delivery of engine events to the generations they belong to.
``worker_replica`` keeps the same promise over a socket. Never imports torch.

A slow consumer: its events wait in its own mailbox, and nobody else waits for it. The mailbox is bounded
by what the generation may produce (``max_tokens`` events of about 200 bytes and, rarely, their logprobs), so
it needs no second limit; pausing a row inside the engine would cost a cache slot to save those bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Container, Iterable, Sequence
from dataclasses import replace
from itertools import count
from typing import Protocol

from sllmd.core.errors import InvalidRequest, ModelLoadFailed, WorkerLost
from sllmd.core.ids import GenerationId, ReplicaId
from sllmd.engine.fake import FakeEngine, FakeSettings
from sllmd.engine.protocol import (
    EngineEvent,
    EngineOptions,
    EngineStats,
    FailedEvent,
    FinishedEvent,
    GenerationState,
    TokenEvent,
)
from sllmd.engine.tally import Run, Tally
from sllmd.store.manifest import Manifest


class Replica(Protocol):
    """A loaded copy of a checkpoint that can run generations."""

    replica_id: ReplicaId
    lost: asyncio.Future[str]
    """Resolved with the reason when the replica is gone, wanted or not."""
    context_tokens: int
    """Longest prompt + completion that its engine takes, known when it can serve; 0: no limit."""
    tally: Tally
    """What runs on it."""

    def progress(self, bytes_ready: Sequence[int]) -> None:
        """Tell how many bytes of each partition's address space are filled, counted from its start."""

    async def begin(self) -> None:
        """Call when the memory is filled; returns when it can serve.

        Raises ModelLoadFailed with the worker's real last error; the replica is gone then.
        """

    def generate(self, state: GenerationState) -> AsyncGenerator[EngineEvent, None]:
        """Run ``state`` and yield its events in order; ``aclose`` cancels it.

        Ends after a TokenEvent with a finish reason, a FinishedEvent or a FailedEvent, and without any of
        them when the generation is exported with ``stop``. Raises WorkerLost when the replica goes.
        """

    async def export(self, generation_id: GenerationId, *, stop: bool) -> GenerationState | None:
        """The state as of the last step; None: no such generation runs here. Raises WorkerLost."""

    async def prefill(self, state: GenerationState) -> None:
        """Return when the cache is warm for ``state``. Raises WorkerLost."""

    async def stats(self) -> EngineStats:
        """A snapshot. Raises WorkerLost."""

    async def sleep(self) -> None:
        """Give back what the engine holds of devices and memory, and keep process and mapping.

        Call when nothing runs on it. Raises ModelLoadFailed when it is gone instead.
        """

    async def wake(self, devices: Sequence[str]) -> None:
        """Build the engine anew; returns when it can serve. Raises as ``begin``."""

    async def close(self) -> None:
        """Stop it; returns when its memory is really free."""


def ends_generation(event: EngineEvent) -> bool:
    """Whether no event of the same generation follows ``event``."""
    return isinstance(event, FinishedEvent | FailedEvent) or (
        isinstance(event, TokenEvent) and event.finish_reason is not None
    )


class Mailbox:
    """Events of one generation, from the moment they arrive until its consumer takes them."""

    __slots__ = ("_closed", "_error", "_events", "_waiter", "run")

    def __init__(self, run: Run) -> None:
        self.run = run
        self._events: deque[EngineEvent] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: WorkerLost | None = None
        self._closed = False

    def put(self, event: EngineEvent) -> None:
        """Hand over an event."""
        self.run.note(event)
        self._events.append(event)
        self._wake()

    def close(self, error: WorkerLost | None = None) -> None:
        """No event follows; after those here the consumer gets ``error`` or the end."""
        self._closed = True
        self._error = error
        self._wake()

    async def events(self) -> AsyncGenerator[EngineEvent, None]:
        """Events up to the last one of the generation, or until closed."""
        while True:
            while self._events:
                event = self._events.popleft()
                yield event
                if ends_generation(event):
                    return
            if self._closed:
                if self._error is not None:
                    raise self._error
                return
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class LocalReplica:
    """A fake engine in this process, stepped by a task."""

    def __init__(
        self, replica_id: ReplicaId, manifest: Manifest, options: EngineOptions, settings: FakeSettings
    ) -> None:
        self.replica_id = replica_id
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.context_tokens = 0
        self.tally = Tally()
        self._manifest = manifest
        self._options = options
        self._settings = settings
        self._engine: FakeEngine | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._work = asyncio.Event()
        self._mailboxes: dict[GenerationId, Mailbox] = {}
        self._prefills: dict[GenerationId, asyncio.Future[None]] = {}
        self._numbers = count(1)

    def progress(self, bytes_ready: Sequence[int]) -> None:
        """Nothing to copy."""

    async def begin(self) -> None:
        """Build the engine."""
        try:
            self._engine = FakeEngine.build(self._manifest, self._options, self._settings)
        except (RuntimeError, ValueError) as error:
            await self._end(str(error))
            raise ModelLoadFailed(str(error)) from error
        self.context_tokens = self._engine.stats().context_tokens
        await asyncio.sleep(self._settings.overridden_by(self._manifest).build_seconds)
        self._loop_task = asyncio.create_task(self._run(self._engine), name=f"engine {self.replica_id}")

    async def generate(self, state: GenerationState) -> AsyncGenerator[EngineEvent, None]:
        """Run ``state``; see ``Replica``."""
        engine = self._require_engine()
        generation_id = state.generation_id
        refuse_duplicate(self._mailboxes, generation_id)
        mailbox = self._mailboxes[generation_id] = Mailbox(self.tally.begin(state))
        engine.add(state)
        self._work.set()
        events = mailbox.events()
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()
            del self._mailboxes[generation_id]
            self.tally.end(mailbox.run)
            engine.cancel(generation_id)

    async def export(self, generation_id: GenerationId, *, stop: bool) -> GenerationState | None:
        """The state as of the last step."""
        state = self._require_engine().export(generation_id, stop=stop)
        if stop and generation_id in self._mailboxes:
            self._mailboxes[generation_id].close()
        return state

    async def prefill(self, state: GenerationState) -> None:
        """Warm the cache for ``state``, under an id of its own. Raises InvalidRequest when it is refused."""
        engine = self._require_engine()
        own_id = GenerationId(f"prefill {next(self._numbers)}")
        done = self._prefills[own_id] = asyncio.get_running_loop().create_future()
        engine.prefill(replace(state, generation_id=own_id))
        self._work.set()
        try:
            await done
        finally:
            del self._prefills[own_id]

    async def sleep(self) -> None:
        """Drop the engine."""
        await self._stop_stepping()
        self._engine = None

    async def wake(self, devices: Sequence[str]) -> None:  # noqa: ARG002 - it needs none
        """Build it anew."""
        await self.begin()

    async def stats(self) -> EngineStats:
        """A snapshot."""
        return self._require_engine().stats()

    async def close(self) -> None:
        """Stop the loop; generations that still run get WorkerLost."""
        await self._end("closed")

    def _require_engine(self) -> FakeEngine:
        if self.lost.done():
            raise WorkerLost(f"replica {self.replica_id} is gone: {self.lost.result()}")
        assert self._engine is not None, "begin() comes first"
        return self._engine

    async def _run(self, engine: FakeEngine) -> None:
        while True:
            if not engine.has_work():
                self._work.clear()
                await self._work.wait()
            try:
                events = engine.step()
            except RuntimeError as error:
                self._lose(str(error))
                return
            # Addressed now: after the pause, a generation may be gone and another have its id.
            addressed = [(self._mailboxes.get(event.generation_id), event) for event in events]
            await asyncio.sleep(engine.step_seconds)
            self._deliver(addressed)

    def _deliver(self, addressed: Iterable[tuple[Mailbox | None, EngineEvent]]) -> None:
        for mailbox, event in addressed:
            done = self._prefills.get(event.generation_id)
            if mailbox is not None:
                mailbox.put(event)
            elif done is not None and not done.done():
                if isinstance(event, FailedEvent):
                    done.set_exception(InvalidRequest(event.message))
                else:
                    done.set_result(None)

    def _lose(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)
        error = WorkerLost(f"replica {self.replica_id} is gone: {reason}")
        for mailbox in self._mailboxes.values():
            mailbox.close(error)
        for done in self._prefills.values():
            if not done.done():
                done.set_exception(error)

    async def _end(self, reason: str) -> None:
        await self._stop_stepping()
        self._lose(reason)

    async def _stop_stepping(self) -> None:
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.wait([self._loop_task])


def refuse_duplicate(table: Container[GenerationId], generation_id: GenerationId) -> None:
    """Raise InvalidRequest when ``generation_id`` is in ``table`` already."""
    if generation_id in table:
        raise InvalidRequest(f"generation `{generation_id}` already runs here")

"""A replica in a worker process: the ``Replica`` promise kept over a socket.

Owns: the handles of its generations, the answers it waits for, and noticing that a worker hangs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import structlog

from sllmd.core.errors import InvalidRequest, ModelLoadFailed, ProtocolError, WorkerLost
from sllmd.core.ids import GenerationId, ReplicaId
from sllmd.core.memory import PartitionMemory
from sllmd.engine.cores import CoreShares
from sllmd.engine.messages import (
    Add,
    AskStats,
    Asleep,
    Attach,
    Begin,
    Cancel,
    Events,
    Export,
    Exported,
    Mapped,
    Message,
    Prefill,
    Prefilled,
    Progress,
    Ready,
    Refused,
    Sleep,
    Stats,
    Threads,
    Wake,
    unpack_events,
)
from sllmd.engine.postmortem import Cause
from sllmd.engine.protocol import EngineEvent, EngineStats, GenerationState
from sllmd.engine.replica import Mailbox, ends_generation, refuse_duplicate
from sllmd.engine.settings import WorkerSettings
from sllmd.engine.tally import Tally
from sllmd.engine.worker_process import WorkerProcess

_log = structlog.get_logger(__name__)

_LOOKS_PER_HANG_TIMEOUT = 4
"""A hang is so many looks in a row without a sign of life. Looks, not a clock: when this process itself was
held up, many seconds pass between two looks and none of them is the worker's fault."""


SETTLE_SECONDS = 5.0
"""From ready on a replica keeps its share of the cores for so long even when idle: behind its first tokens
it lays out its weights anew, a second per GB, and a pass of another that has to wait for one of its threads
waits for all of it."""


class WorkerReplica:
    """See ``Replica``."""

    def __init__(
        self,
        replica_id: ReplicaId,
        worker: WorkerProcess,
        settings: WorkerSettings,
        cores: CoreShares | None = None,
    ) -> None:
        """``cores``: shared with other replicas; None: its number of threads is what its options say."""
        self.replica_id = replica_id
        self.worker = worker
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[str] = loop.create_future()
        self.context_tokens = 0
        self.tally = Tally()
        self._settings = settings
        self._cores = cores
        self._threads = 0
        self._mapped: asyncio.Future[None] = loop.create_future()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._asleep: asyncio.Future[None] = loop.create_future()
        self._numbers = count(1)
        self._handles: dict[GenerationId, int] = {}
        self._generation_ids: dict[int, GenerationId] = {}
        self._mailboxes: dict[int, Mailbox] = {}
        self._running: set[int] = set()
        """Handles whose last event has not come: a mailbox may outlive that, when its consumer is slow."""
        self._prefills = 0
        self._settling = True
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._leaving: dict[int, int] = {}
        """Request of an export that ends its generation, and that generation's handle."""
        self._signs_of_life = 0
        worker.on_message = self._take
        worker.gone.add_done_callback(self._on_gone)
        self._watch = asyncio.create_task(self._watch_for_hang(), name=f"watch {replica_id}")

    async def attach(self, message: Attach, memory: Sequence[PartitionMemory]) -> None:
        """Hand the memory over; returns when it is mapped. Raises ModelLoadFailed; close it then."""
        descriptors = [descriptor for partition in memory for descriptor in partition.descriptors]
        if self._cores is not None:
            self._cores.set_busy(self, True)  # until it is ready: building a model computes, too
            message = replace(message, options=replace(message.options, threads=self._threads))
        self.worker.send(message, descriptors)
        await self._bring_up(self._mapped, self._settings.attach_timeout_seconds, "map the model's memory")

    def use_threads(self, threads: int) -> None:
        """See ``Computes``. The first number goes with the attach."""
        before, self._threads = self._threads, threads
        if before not in (0, threads):
            self.worker.send(Threads(threads))

    def progress(self, bytes_ready: Sequence[int]) -> None:
        """Tell how many bytes of each partition are filled."""
        if not self.lost.done():
            self.worker.send(Progress(tuple(bytes_ready)))

    async def begin(self) -> None:
        """Build the engine over the filled memory; see ``Replica``."""
        self.worker.send(Begin())
        await self._bring_up(self._ready, self._settings.begin_timeout_seconds, "build the engine")

    async def generate(self, state: GenerationState) -> AsyncGenerator[EngineEvent, None]:
        """Run ``state``; see ``Replica``."""
        self._require_serving()
        refuse_duplicate(self._handles, state.generation_id)
        handle = self._handles[state.generation_id] = next(self._numbers)
        self._generation_ids[handle] = state.generation_id
        mailbox = self._mailboxes[handle] = Mailbox(self.tally.begin(state))
        self._running.add(handle)
        self._account()
        events = mailbox.events()
        try:
            self.worker.send(Add(handle, state))
            async for event in events:
                yield event
        finally:
            await events.aclose()
            del self._handles[state.generation_id], self._generation_ids[handle], self._mailboxes[handle]
            self.tally.end(mailbox.run)
            if handle in self._running:
                self._done(handle)
                self.worker.send(Cancel(handle))

    async def export(self, generation_id: GenerationId, *, stop: bool) -> GenerationState | None:
        """The state as of the last step; see ``Replica``."""
        handle = self._handles.get(generation_id)
        if handle is None:
            self._require_serving()
            return None

        def question(request: int) -> Export:
            if stop:
                self._leaving[request] = handle
            return Export(request, handle, stop)

        state: GenerationState | None = await self._ask(question)
        return state

    async def prefill(self, state: GenerationState) -> None:
        """Warm the cache for ``state``. Raises InvalidRequest when the engine refuses it."""
        self._prefills += 1
        self._account()
        try:
            await self._ask(lambda request: Prefill(request, state))
        finally:
            self._prefills -= 1
            self._account()

    async def stats(self) -> EngineStats:
        """A snapshot."""
        stats: EngineStats = await self._ask(AskStats)
        return stats

    async def sleep(self) -> None:
        """Have the engine dropped; see ``Replica``."""
        loop = asyncio.get_running_loop()
        self._ready, self._asleep = loop.create_future(), loop.create_future()
        self.worker.send(Sleep())
        await self._bring_up(self._asleep, self._settings.begin_timeout_seconds, "drop the engine")
        self._settled()

    async def wake(self, devices: Sequence[str]) -> None:
        """Have it built anew; see ``Replica``."""
        self._settling = True
        self._account()
        self.worker.send(Wake(tuple(devices), self._threads))
        await self._bring_up(self._ready, self._settings.begin_timeout_seconds, "build the engine")

    async def close(self) -> None:
        """Stop the worker; returns when it is reaped and its memory free."""
        await self.worker.stop(Cause("it was closed"))
        self._watch.cancel()

    # -- what the worker says ------------------------------------------------------------------

    def _take(self, message: Message) -> None:
        self._signs_of_life += 1
        match message:
            case Events():
                self._deliver(message)
            case Stats():
                self._resolve(message.request, message.stats)
            case Exported():
                self._left(self._leaving.pop(message.request, -1))
                self._resolve(message.request, message.state)
            case Prefilled():
                self._resolve(message.request, None)
            case Refused():
                answer = self._answers.get(message.request)
                if answer is not None and not answer.done():
                    answer.set_exception(InvalidRequest(message.message))
            case Mapped() if not self._mapped.done():
                self._mapped.set_result(None)
            case Ready() if not self._ready.done():
                _log.info("engine built", replica=self.replica_id, **message.stages_seconds)
                self.context_tokens = message.context_tokens
                self._ready.set_result(None)
                asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._settled)
            case Asleep() if not self._asleep.done():
                self._asleep.set_result(None)
            case _:
                raise ProtocolError(f"an attached worker sent {type(message).__name__}")

    def _deliver(self, message: Events) -> None:
        for handle, event in unpack_events(message, self._generation_ids):
            self._mailboxes[handle].put(event)
            if ends_generation(event):
                self._done(handle)

    def _left(self, handle: int) -> None:
        """A generation was exported and runs no more, whether or not somebody still waits for its state."""
        self._done(handle)
        if handle in self._mailboxes:
            self._mailboxes[handle].close()

    def _done(self, handle: int) -> None:
        """A generation runs no more."""
        self._running.discard(handle)
        self._account()

    def _settled(self) -> None:
        self._settling = False
        self._account()

    def _account(self) -> None:
        """Take a share of the cores while there is work, and only then. Building the model is some."""
        if self._cores is not None:
            works = self._settling or bool(self._running or self._prefills)
            self._cores.set_busy(self, works and not self.worker.gone.done())

    def _resolve(self, request: int, value: object) -> None:
        answer = self._answers.get(request)
        if answer is not None and not answer.done():
            answer.set_result(value)

    # -- asking and waiting --------------------------------------------------------------------

    async def _ask(self, make: Callable[[int], Message]) -> Any:
        self._require_serving()
        request = next(self._numbers)
        answer = self._answers[request] = asyncio.get_running_loop().create_future()
        self.worker.send(make(request))
        try:
            return await answer
        finally:
            del self._answers[request]

    async def _bring_up(self, answer: asyncio.Future[None], timeout_seconds: float, what: str) -> None:
        await self.worker.first_of(answer, timeout_seconds)
        if answer.done():
            return
        self.worker.kill(Cause(f"the worker took longer than {timeout_seconds:.0f} s to {what}"))
        cause = await asyncio.shield(self.worker.gone)
        raise ModelLoadFailed(cause.message, hint=cause.hint)

    def _require_serving(self) -> None:
        if self.worker.gone.done():
            raise self._worker_lost(self.worker.gone.result())
        if not self._ready.done():
            raise ProtocolError(f"replica {self.replica_id} cannot serve before begin() has returned")

    def _worker_lost(self, cause: Cause) -> WorkerLost:
        return WorkerLost(f"replica {self.replica_id} is gone: {cause.message}", hint=cause.hint)

    # -- its end -------------------------------------------------------------------------------

    def _on_gone(self, gone: asyncio.Task[Cause]) -> None:
        self._watch.cancel()
        if gone.cancelled():
            return
        cause = gone.result()
        self._running.clear()
        self._account()
        # Before its generations hear of it: they shall not be offered this replica again.
        if not self.lost.done():
            self.lost.set_result(f"{cause.message} ({cause.hint})" if cause.hint else cause.message)
        for mailbox in self._mailboxes.values():
            mailbox.close(self._worker_lost(cause))
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._worker_lost(cause))

    async def _watch_for_hang(self) -> None:
        """Kill a worker that has work and gives no sign of life. Building an engine is no such work."""
        timeout_seconds = self._settings.hang_timeout_seconds
        seen, quiet_looks = -1, 0
        while quiet_looks <= _LOOKS_PER_HANG_TIMEOUT:
            await asyncio.sleep(timeout_seconds / _LOOKS_PER_HANG_TIMEOUT)
            owes = bool(self._running or self._answers)
            quiet_looks = quiet_looks + 1 if owes and seen == self._signs_of_life else 0
            seen = self._signs_of_life
        _log.error("worker hangs", replica=self.replica_id, pid=self.worker.process.pid)
        self.worker.kill(
            Cause(
                f"the worker had work and completed no step for {timeout_seconds:.0f} s",
                "see its last lines in the log; raise [workers] hang_timeout_seconds if the model is slow",
            )
        )

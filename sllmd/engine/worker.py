"""A worker: one process, one replica.

A life: (1) forked by the zygote, rehearse, say ``Waiting``; (2) ``Attach``: map the memory, say ``Mapped``,
build the model without weights; (3) ``Begin``: put the weights in, say ``Ready``; (4) step until ``Stop`` or
until the daemon hangs up; or until ``Sleep``: drop the engine, say ``Asleep``, and from ``Wake`` on go
through (2) and (3) again without mapping anything. An I/O thread only moves messages into a queue; everything
that touches the engine happens in the main thread, between two steps.

A worker holds nothing that needs saving: it ends by ``os._exit``, whatever its threads are doing.
"""

from __future__ import annotations

import gc
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NoReturn

from sllmd.core.errors import ProtocolError, SllmdError
from sllmd.core.ids import GenerationId
from sllmd.core.memory import PartitionMemory
from sllmd.engine import builders
from sllmd.engine.builders import EngineBuilder, EngineKind
from sllmd.engine.memory import MappedPartition, Populator, map_partitions
from sllmd.engine.messages import (
    Add,
    AskStats,
    Asleep,
    Attach,
    Begin,
    Cancel,
    Export,
    Exported,
    Failed,
    Mapped,
    Message,
    Prefill,
    Prefilled,
    Progress,
    Ready,
    Refused,
    Sleep,
    Stats,
    Stop,
    Threads,
    Waiting,
    Wake,
    decode,
    encode,
    pack_events,
)
from sllmd.engine.protocol import Engine, EngineEvent, FailedEvent, PrefilledEvent
from sllmd.engine.replica import ends_generation
from sllmd.store.manifest import Manifest
from sllmd.wire.frames import BlockingChannel, close_descriptors

SILENT_STEPS_SECONDS = 1.0
"""A step without events is told only this often: enough for the daemon to see that the worker works."""

GATHER_QUIET_SECONDS = 0.001
"""From the last message to the first step after a pause: a little more than the daemon needs to read another
request. It comes to 3 % of the first token's time, and may save others a step."""
GATHER_SECONDS_MAX = 0.008
"""A first step waits no longer, whatever comes: a third of what it takes."""

Inbox = queue.SimpleQueue[tuple[Message, list[int]]]
"""Messages and the descriptors that came with them."""


class Worker:
    """The main thread's side of a worker."""

    def __init__(self, channel: BlockingChannel, engine_kind: EngineKind) -> None:
        self._channel = channel
        self._engine_kind = engine_kind
        self._inbox: Inbox = queue.SimpleQueue()
        self._handles: dict[GenerationId, int] = {}
        self._generation_ids: dict[int, GenerationId] = {}
        self._prefills: dict[GenerationId, int] = {}
        self._populator: Populator | None = None
        self._told_seconds = 0.0
        self._sleeps = False

    def run(self) -> NoReturn:
        """The whole life."""
        builders.rehearse(self._engine_kind)
        threading.Thread(target=self._listen, name="messages", daemon=True).start()
        self._send(Waiting())
        attach, descriptors = self._inbox.get()
        if not isinstance(attach, Attach):
            raise ProtocolError(f"{type(attach).__name__} came before Attach")
        manifest = Manifest.model_validate_json(attach.manifest_json)
        mapped = self._map(attach, descriptors)
        whole = [partition.span_bytes for partition in mapped]
        self._serve(self._build(attach, manifest, mapped, self._await_begin))
        while True:
            attach = self._sleep(attach)
            self._serve(self._build(attach, manifest, mapped, lambda builder: builder.progress(whole)))

    def _map(self, attach: Attach, descriptors: list[int]) -> list[MappedPartition]:
        on_cpu = all(device.startswith("cpu") for device in attach.devices)
        mapped = map_partitions(_partitions(attach, descriptors), shared=not on_cpu)
        close_descriptors(descriptors)
        if on_cpu:
            self._populator = Populator(mapped)
        self._send(Mapped())
        return mapped

    def _build(
        self,
        attach: Attach,
        manifest: Manifest,
        mapped: list[MappedPartition],
        fill: Callable[[EngineBuilder], None],
    ) -> Engine:
        """The engine; ``fill`` returns when all bytes are there."""
        started_seconds = time.monotonic()
        builder = builders.builder_of(self._engine_kind, attach, manifest, mapped)
        builder.skeleton()
        skeleton_seconds = time.monotonic() - started_seconds
        fill(builder)
        started_seconds = time.monotonic()
        engine = builder.finish()
        finish_seconds = time.monotonic() - started_seconds
        engine.on_work(lambda: self._inbox.put((Progress(()), [])))
        stages_seconds = {"skeleton": skeleton_seconds, "finish": finish_seconds}
        self._send(Ready(stages_seconds, engine.stats().context_tokens))
        return engine

    def _await_begin(self, builder: EngineBuilder) -> None:
        while True:
            message, _ = self._inbox.get()
            match message:
                case Begin():
                    return
                case Progress():
                    builder.progress(message.bytes_ready)
                case Threads():
                    builder.use_threads(message.count)
                case _:
                    raise ProtocolError(f"{type(message).__name__} came before Begin")

    def _sleep(self, attach: Attach) -> Attach:
        """Nobody holds the engine any more. Returns what it is to be built as, once it is needed again."""
        gc.collect()
        builders.give_back(self._engine_kind)
        self._send(Asleep())
        while True:
            message, _ = self._inbox.get()
            match message:
                case Wake():
                    self._sleeps = False
                    options = replace(attach.options, threads=message.threads or attach.options.threads)
                    return replace(attach, devices=message.devices, options=options)
                case Progress() | Threads():
                    pass  # of the engine that is gone, and for it
                case _:
                    raise ProtocolError(f"a sleeping worker cannot act on {type(message).__name__}")

    def _serve(self, engine: Engine) -> None:
        """Until it shall sleep."""
        while not self._sleeps:
            idle = not engine.has_work()
            self._drain(engine)
            if idle and not self._sleeps:
                for message in close_behind(self._inbox):
                    self._act(engine, message)
                    if self._sleeps:
                        return
            if engine.has_work() and not self._sleeps:
                self._emit(engine, engine.step())

    def _drain(self, engine: Engine) -> None:
        """Act on every message that is here; wait for one when there is nothing else to do."""
        while not self._sleeps:
            try:
                message, _ = self._inbox.get(block=not engine.has_work())
            except queue.Empty:
                return
            self._act(engine, message)

    def _act(self, engine: Engine, message: Message) -> None:
        match message:
            case Add():
                generation_id = message.state.generation_id
                self._handles[generation_id] = message.handle
                self._generation_ids[message.handle] = generation_id
                engine.add(message.state)
            case Cancel():
                cancelled = self._forget(message.handle)
                if cancelled is not None:
                    engine.cancel(cancelled)
            case Export():
                self._export(engine, message)
            case Prefill():
                # Under an id of its own: the generation itself may come before it is done.
                own_id = GenerationId(f"prefill {message.request}")
                self._prefills[own_id] = message.request
                engine.prefill(replace(message.state, generation_id=own_id))
            case Progress():
                pass  # the engine's own, to look again whether it has work
            case Threads():
                engine.use_threads(message.count)
            case Sleep() if not self._handles:
                self._sleeps = True
            case AskStats():
                self._send(Stats(message.request, engine.stats()))
            case _:
                raise ProtocolError(f"a serving worker cannot act on {type(message).__name__}")

    def _export(self, engine: Engine, message: Export) -> None:
        generation_id = self._generation_ids.get(message.handle)
        state = None if generation_id is None else engine.export(generation_id, stop=message.stop)
        if message.stop:
            self._forget(message.handle)
        self._send(Exported(message.request, state))

    def _forget(self, handle: int) -> GenerationId | None:
        generation_id = self._generation_ids.pop(handle, None)
        if generation_id is not None:
            del self._handles[generation_id]
        return generation_id

    def _emit(self, engine: Engine, events: list[EngineEvent]) -> None:
        """One frame for the step. A daemon that is slow to read makes this wait, and with it the engine."""
        if self._prefills:
            self._answer_prefills(events)
        now_seconds = time.monotonic()
        if not events and now_seconds - self._told_seconds < SILENT_STEPS_SECONDS:
            return
        self._told_seconds = now_seconds
        told = self._tell(engine, [event for event in events if event.generation_id in self._handles])
        for event in told:
            if ends_generation(event):
                self._forget(self._handles.get(event.generation_id, -1))

    def _tell(self, engine: Engine, events: list[EngineEvent]) -> list[EngineEvent]:
        """Send, and return what was sent: a generation whose event makes the message too long fails alone."""
        try:
            self._send(pack_events(events, self._handles))
        except ProtocolError as error:
            largest = max(events, key=lambda event: len(repr(event)))
            if isinstance(largest, FailedEvent):
                raise
            failed = largest.generation_id
            engine.cancel(failed)
            others = [event for event in events if event.generation_id != failed]
            return self._tell(engine, [*others, FailedEvent(failed, error.message, "request")])
        return events

    def _answer_prefills(self, events: list[EngineEvent]) -> None:
        for event in events:
            if event.generation_id not in self._prefills:
                continue
            match event:
                case PrefilledEvent():
                    self._send(Prefilled(self._prefills.pop(event.generation_id)))
                case FailedEvent():
                    self._send(Refused(self._prefills.pop(event.generation_id), event.message))

    def _listen(self) -> None:
        """The I/O thread."""
        try:
            while True:
                value, descriptors = self._channel.receive()
                message = decode(value)
                if isinstance(message, Stop):
                    os._exit(0)  # at once, whatever the main thread is at
                self._map_pages(message)
                self._inbox.put((message, descriptors))
        except (EOFError, OSError):
            os._exit(0)  # the daemon is gone
        except ProtocolError:
            traceback.print_exc()
            os._exit(1)

    def _map_pages(self, message: Message) -> None:
        """Not in the main thread's time, which builds the model."""
        if self._populator is not None:
            match message:
                case Progress():
                    self._populator.advance(message.bytes_ready)
                case Begin():
                    self._populator.finish()

    def _send(self, message: Message) -> None:
        self._channel.send(encode(message))


def main(connection: socket.socket, engine_kind: EngineKind, frame_bytes_max: int) -> NoReturn:
    """Run a worker in this process, which ends with it."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    channel = BlockingChannel(connection, frame_bytes_max=frame_bytes_max)
    try:
        Worker(channel, engine_kind).run()
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)  # the daemon is gone
    except Exception as error:  # noqa: BLE001 - the daemon turns it into an event
        traceback.print_exc()
        sys.stderr.flush()
        channel.send(encode(_last_words(error)))
        os._exit(1)


def close_behind(inbox: Inbox) -> Iterator[Message]:
    """What comes right behind the first message after a pause.

    Generations often begin together, and a first step with one of them keeps the others waiting.
    """
    until = time.monotonic() + GATHER_SECONDS_MAX
    while (left_seconds := until - time.monotonic()) > 0:
        try:
            yield inbox.get(timeout=min(GATHER_QUIET_SECONDS, left_seconds))[0]
        except queue.Empty:
            return


def _partitions(attach: Attach, descriptors: list[int]) -> tuple[PartitionMemory, ...]:
    partitions = []
    start = 0
    for span_bytes, slab_bytes, count in attach.partitions:
        partitions.append(PartitionMemory(span_bytes, slab_bytes, tuple(descriptors[start : start + count])))
        start += count
    return tuple(partitions)


def _last_words(error: Exception) -> Failed:
    if isinstance(error, SllmdError):
        return Failed(error.message, error.hint)
    text: Any = str(error).strip()
    return Failed(f"{type(error).__name__}: {text}" if text else type(error).__name__, None)

"""Reading the order that etcd keeps: from a snapshot on, page by page, then as it grows.

Whatever interrupts the watch (an endpoint gone, history compacted, a silence), reading goes on from the last
position that was applied.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Protocol

import structlog

from sllmd.cluster.catalogue import EMPTY, Catalogue, apply_bytes, restore
from sllmd.cluster.catalogue.results import Result
from sllmd.cluster.etcd.failures import EtcdAway, EtcdRefused
from sllmd.cluster.etcd.gateway import Gateway
from sllmd.cluster.etcd.keys import Keys, Pointer, unpack_batch, unpack_pointer
from sllmd.cluster.etcd.requests import (
    Json,
    Page,
    Pair,
    get,
    look,
    page,
    prefix_end,
    read_ended,
    read_page,
    read_pair,
    txn,
    watch,
)
from sllmd.cluster.etcd.settings import EtcdSettings
from sllmd.core.errors import ControlUnavailable, ProtocolError
from sllmd.core.ids import NodeId
from sllmd.telemetry.supervising import end_tasks

PAGE_PAIRS = 256
"""Batches read at once: some kB each as a rule, and 1 MiB at most."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Seat:
    """Who sits in the leader's seat, since which revision, on which lease."""

    node: NodeId
    revision: int
    lease: int


@dataclass(frozen=True, slots=True)
class Read:
    """How far a node has read, and how much of that no snapshot has yet."""

    catalogue: Catalogue
    position: int
    commands_since_snapshot: int
    bytes_since_snapshot: int


NOTHING = Read(EMPTY, 0, 0, 0)


class Listener(Protocol):
    """Who is told what was read, after the catalogue shows it."""

    def batch_applied(self, name: bytes, results: list[Result]) -> None:
        """The batch under this key was carried out just now."""

    def restored(self, catalogue: Catalogue) -> None:
        """The catalogue comes from a snapshot: batches in it were not seen one by one."""

    def seat_changed(self, seat: Seat | None, revision: int) -> None:
        """Somebody sits in the leader's seat, or nobody, as of a revision of etcd."""

    def moved(self) -> None:
        """The catalogue changed."""


class Log:
    """The catalogue as far as this node has read. ``run`` and ``pulse`` for ever, in tasks of their own."""

    def __init__(self, gateway: Gateway, keys: Keys, settings: EtcdSettings, listener: Listener) -> None:
        self.catalogue: Catalogue = EMPTY
        self.position = 0
        self.commands_since_snapshot = 0
        self.bytes_since_snapshot = 0
        self._gateway = gateway
        self._keys = keys
        self._settings = settings
        self._listener = listener
        self._moved = asyncio.Event()
        self._newest_at: float | None = None
        self._asking: asyncio.Task[tuple[float, int]] | None = None
        self._asking_next: asyncio.Task[tuple[float, int]] | None = None
        self._away = False

    @property
    def newest(self) -> Read:
        """All that a later life needs to go on from here."""
        return Read(self.catalogue, self.position, self.commands_since_snapshot, self.bytes_since_snapshot)

    def recall(self, read: Read) -> None:
        """Begin from this, which was read in another life."""
        self.catalogue, self.position = read.catalogue, read.position
        self.commands_since_snapshot = read.commands_since_snapshot
        self.bytes_since_snapshot = read.bytes_since_snapshot

    @property
    def age_seconds(self) -> float:
        """Since the view was known to be the newest; infinite before the first time."""
        return float("inf") if self._newest_at is None else time.monotonic() - self._newest_at

    async def run(self) -> None:
        """Read for ever."""
        while True:
            try:
                await self._follow(await self._catch_up())
            except (EtcdAway, EtcdRefused) as error:
                self._gateway.log_in_again()
                _log.info("reading etcd was interrupted", cause=str(error))
                await asyncio.sleep(self._settings.retry_seconds)

    async def pulse(self) -> None:
        """Confirm for ever that the view is the newest; a watch that has fallen behind is begun anew."""
        while True:
            try:
                await self.confirm()
            except ControlUnavailable as error:
                if not self._away:
                    _log.warning("etcd does not answer; views go on and grow old", cause=str(error))
                self._away = True
            except TimeoutError:
                _log.warning("the watch of etcd fell silent, watching anew")
                self._gateway.hang_up()
            else:
                if self._away:
                    _log.info("etcd answers again")
                self._away = False
            await asyncio.sleep(self._settings.pulse_seconds)

    async def confirm(self) -> None:
        """When this returns, the view is no older than this call. Raises ControlUnavailable; TimeoutError
        when what etcd says is there does not come in time."""
        asked_at, tip = await self._tip()
        async with asyncio.timeout(self._settings.request_seconds):
            while self.position < tip:
                await self._moved.wait()
        self._newest_at = max(asked_at, self._newest_at or asked_at)

    async def _tip(self) -> tuple[float, int]:
        """When it was asked, and the newest batch's position at that time or later. Calls that come while one
        is asked share the next."""
        if self._asking_next is None:
            self._asking_next = asyncio.create_task(self._ask_tip(self._asking))
            self._asking_next.add_done_callback(_retrieve)  # whoever asked may have left
        return await asyncio.shield(self._asking_next)

    async def _ask_tip(self, before: asyncio.Task[tuple[float, int]] | None) -> tuple[float, int]:
        if before is not None:
            await asyncio.wait([before])
        self._asking, self._asking_next = self._asking_next, None
        asked_at = time.monotonic()
        found = read_page(await self._gateway.call("/v3/kv/range", get(self._keys.tip))).only
        return asked_at, found.mod_revision if found else 0

    async def close(self) -> None:
        """Ask nothing more."""
        await end_tasks(self._asking, self._asking_next)

    async def _catch_up(self) -> int:
        """Read up to the present; which revision that was."""
        before = self.position
        steps = [look(self._keys.pointer), look(self._keys.leader)]
        answer = read_ended(await self._gateway.call("/v3/kv/txn", txn([], steps)))
        pointer, leader = (found.only for found in answer.pages)
        if answer.revision < self.position:
            _log.error(
                "etcd is younger than what was read from it: reading everything anew",
                hint="raise [cluster.etcd] incarnation on all nodes after etcd was restored",
            )
            self.recall(NOTHING)
        if pointer is not None:
            await self._restore(unpack_pointer(pointer.value), answer.revision)
        await self._replay(answer.revision)
        self._seat(leader, answer.revision)
        if self.position != before:
            self._listener.moved()
        return answer.revision

    async def _restore(self, pointer: Pointer, revision: int) -> None:
        if pointer.position <= self.position:
            return
        pieces = []
        for index in range(pointer.pieces):
            piece = await self._range(get(self._keys.piece(pointer.name, index), revision=revision))
            if piece.only is None:
                raise ProtocolError(f"piece {index} of snapshot {pointer.name} is missing in etcd")
            pieces.append(piece.only.value)
        self.catalogue = await asyncio.to_thread(restore, b"".join(pieces))
        self.commands_since_snapshot = self.bytes_since_snapshot = 0
        self._listener.restored(self.catalogue)
        self._move(pointer.position)

    async def _replay(self, revision: int) -> None:
        while True:
            request = page(self._keys.commands, limit=PAGE_PAIRS, revision=revision, after=self.position)
            found = await self._range(request)
            for pair in found.pairs:
                self._apply(pair)
                await asyncio.sleep(0)
            if not found.more:
                return

    async def _range(self, request: Json) -> Page:
        return read_page(await self._gateway.call("/v3/kv/range", request))

    async def _follow(self, revision: int) -> None:
        """Until the stream ends, which it says by an error."""
        commands, leader = self._keys.commands, self._keys.leader
        watches = [
            watch(commands, prefix_end(commands), start_revision=revision + 1, deletes=False),
            watch(leader, None, start_revision=revision + 1, deletes=True),
        ]
        async with self._gateway.stream("/v3/watch", watches) as messages:
            async for message in messages:
                self._take(message)
        raise EtcdAway("the watch ended", in_doubt=False)

    def _take(self, message: Json) -> None:
        if message.get("canceled"):
            reason = (
                "history was compacted" if "compact_revision" in message else message.get("cancel_reason")
            )
            raise EtcdAway(f"the watch was cancelled: {reason}", in_doubt=False)
        before = self.position
        for event in message.get("events", ()):
            pair = read_pair(event["kv"])
            if pair.key == self._keys.leader:
                self._seat(None if event.get("type") == "DELETE" else pair, pair.mod_revision)
            else:
                self._apply(pair)
        if self.position != before:
            self._listener.moved()

    def _seat(self, leader: Pair | None, revision: int) -> None:
        seat = None
        if leader is not None:
            node = NodeId(leader.value.decode(errors="replace"))
            seat = Seat(node, leader.create_revision, leader.lease)
        self._listener.seat_changed(seat, revision)

    def _apply(self, pair: Pair) -> None:
        if pair.mod_revision <= self.position:
            return
        results = []
        for command in unpack_batch(pair.value):
            self.catalogue, result = apply_bytes(self.catalogue, command)
            results.append(result)
        self.commands_since_snapshot += len(results)
        self.bytes_since_snapshot += len(pair.value)
        self._move(pair.mod_revision)
        self._listener.batch_applied(pair.key, results)

    def _move(self, position: int) -> None:
        self.position = position
        self._moved.set()
        self._moved = asyncio.Event()


def _retrieve(task: asyncio.Task[tuple[float, int]]) -> None:
    if not task.cancelled():
        task.exception()

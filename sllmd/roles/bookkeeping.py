"""The leader's side of the routing table: takes reports, tells everybody what changed.

Owns: the methods ``report`` and ``table.follow``, and the ledger while this node leads. A node follows
through one stream, which begins at the version that it has: there are no gaps to find, and a slow node gets
several changes as one. Nothing is told before the nodes were asked for what they have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any, cast

import structlog

from sllmd.cluster.codec import pack, unpack
from sllmd.core.errors import NotHere, ProtocolError, SllmdError
from sllmd.core.ids import NodeId
from sllmd.core.units import KIB
from sllmd.roles.inventory import CODEC as REPORTS
from sllmd.roles.inventory import Inventory, Report
from sllmd.roles.settings import RoutingSettings
from sllmd.roles.table import CODEC as CHANGES
from sllmd.roles.table import Change, Delta, Ledger
from sllmd.telemetry.supervising import keep_running
from sllmd.wire.rpc.methods import Caller, Methods

REPORT = "report"
ASK = "report.ask"
FOLLOW = "table.follow"
ITEM_BYTES = 256 * KIB
"""A table's changes travel in items of about this size."""
_NODES_PER_INTERVAL = 100

_log = structlog.get_logger(__name__)

Ask = Callable[[NodeId], Awaitable[Report]]


class Bookkeeper:
    """Idle unless this node leads."""

    def __init__(
        self, settings: RoutingSettings, ask: Ask, is_here: Callable[[NodeId], bool] = lambda _node: True
    ) -> None:
        """``is_here``: whether a node is one of the cluster's, and well."""
        self._settings = settings
        self._ask = ask
        self._is_here = is_here
        self._ledger: Ledger | None = None
        self._ready = False
        self._news: asyncio.Event = asyncio.Event()
        self._leading: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self.on_inventory: Callable[[NodeId, Inventory | None], None] = lambda _node, _inventory: None
        """Told of a node's inventory whenever it reported; None: the node is gone."""
        self.on_ready: Callable[[], None] = lambda: None
        """Called when the nodes have been asked for what they have."""

    def offer(self, methods: Methods) -> None:
        """Answer other nodes."""
        methods.unary(REPORT, self._on_report)
        methods.stream(FOLLOW, self._on_follow)

    # -- leading -------------------------------------------------------------------------------

    def lead(self, epoch: int, nodes: Iterable[NodeId]) -> None:
        """This node leads now: ask ``nodes`` for what they have, then tell. Once for each epoch."""
        if self._ledger is not None and self._ledger.epoch == epoch:
            return  # a second ledger would count its versions anew
        self.rest()
        self._ledger = ledger = Ledger(epoch)
        asked = list(nodes)
        self._leading = keep_running(lambda: self._lead(ledger, asked))

    def rest(self) -> None:
        """Another node leads, or nobody: who follows this one is sent away."""
        self._ledger, self._ready = None, False
        if self._leading is not None:
            self._leading.cancel()
            self._leading = None
        for task in self._asking:
            task.cancel()
        self._tell()

    def forget(self, node: NodeId) -> None:
        """It is dead or left."""
        if self._ledger is not None:
            self._ledger.forget(node)
            self.on_inventory(node, None)
            self._tell()

    def welcome(self, node: NodeId) -> None:
        """It is here, anew or again: one that was believed dead does not know that it was forgotten."""
        if self._ledger is not None:
            self._begin_to_ask(self._ledger, node)

    async def _lead(self, ledger: Ledger, nodes: list[NodeId]) -> None:
        asking = [self._begin_to_ask(ledger, node) for node in nodes]
        if asking:
            await asyncio.wait(asking, timeout=self._settings.ask_timeout)
        self._ready = True
        self.on_ready()
        self._tell()
        while True:
            count = max(1.0, len(nodes) / _NODES_PER_INTERVAL)
            await asyncio.sleep(self._settings.load_interval * count)
            ledger.settle()
            self._tell()

    def _begin_to_ask(self, ledger: Ledger, node: NodeId) -> asyncio.Task[None]:
        task = asyncio.create_task(self._ask_one(ledger, node))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return task

    async def _ask_one(self, ledger: Ledger, node: NodeId) -> None:
        try:
            report = await self._ask(node)
            if self._ledger is ledger:
                self.take(node, report)
        except SllmdError as error:  # it reports when it can
            _log.info("node did not tell what it has", node=node, reason=str(error))

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # -- what nodes say ------------------------------------------------------------------------

    def take(self, node: NodeId, report: Report) -> bool:
        """A node's report; False: a full one is needed. Raises NotHere when this node does not lead.

        The last words of a node that left must not outlive it: nobody would take them back.
        """
        ledger = self._required()
        if not self._is_here(node):
            return False
        before = ledger.number
        taken = ledger.take(node, report)
        if taken:
            self.on_inventory(node, ledger.inventory(node))
        if ledger.number != before:
            self._tell()
        return taken

    async def _on_report(self, body: Any, caller: Caller) -> bool:
        return self.take(caller.node, unpack_report(body))

    # -- what they are told --------------------------------------------------------------------

    async def deltas(self, epoch: int, number: int) -> AsyncGenerator[Delta, None]:
        """Changes since that version, as they come. Raises NotHere when this node does not lead any more."""
        ledger = self._required()
        while self._ledger is ledger:
            news = self._news
            if not self._ready or (epoch, number) == (ledger.epoch, ledger.number):
                await news.wait()
                continue
            delta = ledger.since(epoch, number)
            epoch, number = delta.epoch, delta.number
            yield delta
            await asyncio.sleep(self._settings.table_interval)
        raise NotHere("this node does not lead any more")

    async def _on_follow(self, body: Any, _caller: Caller) -> AsyncGenerator[Any, None]:
        match body:
            case (int(epoch), int(number)):
                pass
            case _:
                raise ProtocolError("a table's version that cannot be understood")
        async with aclosing(self.deltas(epoch, number)) as deltas:
            async for delta in deltas:
                for item in pack_delta(delta):
                    yield item

    def _required(self) -> Ledger:
        if self._ledger is None:
            raise NotHere("this node does not lead")
        return self._ledger


def unpack_report(body: Any) -> Report:
    """A report that a node sent; raises ProtocolError."""
    report = REPORTS.unpack(body) if isinstance(body, bytes) else None
    if not isinstance(report, Report):
        raise ProtocolError("a report that cannot be understood")
    return report


def pack_delta(delta: Delta) -> Iterator[tuple[Any, ...]]:
    """As items of a stream, the last one marked."""
    items: list[list[bytes]] = [[]]
    size_bytes = 0
    for change in delta.changes:
        packed = pack(CHANGES.encode(change))
        if size_bytes + len(packed) > ITEM_BYTES:
            items.append([])
            size_bytes = 0
        items[-1].append(packed)
        size_bytes += len(packed)
    for number, changes in enumerate(items, 1):
        yield delta.epoch, delta.base, delta.number, number == len(items), changes


class DeltaReader:
    """Items of ``table.follow`` back to deltas."""

    def __init__(self) -> None:
        self._changes: list[Change] = []

    def read(self, item: Any) -> Delta | None:
        """A delta when its last item came; raises ProtocolError."""
        match item:
            case (int(epoch), int(base), int(number), bool(last), tuple(changes)):
                self._changes += [cast("Change", CHANGES.decode(unpack(change))) for change in changes]
            case _:
                raise ProtocolError("changes of the table that cannot be understood")
        if not last:
            return None
        gathered, self._changes = tuple(self._changes), []
        return Delta(epoch, base, number, gathered)

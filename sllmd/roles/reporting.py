"""A node's side of the routing table: it tells the leader what it has, and learns what the others have.

Owns: the table, and one report and one followed stream at a time, both with whoever leads. While nobody
leads, the table stays as it is; what this node itself learns (somebody is dead, somebody has not what the
table says) it notes in its own copy at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import structlog

from sllmd.core.errors import ProtocolError, SllmdError
from sllmd.core.ids import Digest, NodeId
from sllmd.roles.bookkeeping import ASK, FOLLOW, REPORT, Bookkeeper, DeltaReader
from sllmd.roles.inventory import CODEC, Inventory, Report, delta_report, full_report
from sllmd.roles.relay import Connect
from sllmd.roles.settings import RoutingSettings
from sllmd.roles.table import Delta, Table, gone
from sllmd.telemetry.supervising import end_tasks, keep_running
from sllmd.wire.rpc.methods import Caller, Methods

REPORT_SECONDS = 3.0
"""For the leader to take a report."""
RETRY_SECONDS = 0.2
"""After a report or a stream that failed: a new leader needs a moment until it knows that it leads."""
RETRY_SECONDS_MAX = 2.0
"""Later: whoever leads next is followed at once, whatever this one's pause."""
TOLD_SECONDS = 5.0
"""How long whoever asks for a checkpoint waits for a node to tell that it has it: a model may be deployed
before its holder's report has come round."""
COALESCE_SECONDS = 0.02
"""What comes and goes together is told together."""
HAD_MAX = 4096
"""Checkpoints of nodes that went that are remembered: for the words of an error."""

_log = structlog.get_logger(__name__)


async def _fence_nothing(_epoch: int) -> None:
    """Of a node that takes no orders."""


class Reporter:
    """See the module. ``follow`` begins it, for each leader anew."""

    def __init__(
        self, take: Callable[[], Inventory], connect: Connect, keeper: Bookkeeper, settings: RoutingSettings
    ) -> None:
        self.table = Table()
        self.had: dict[Digest, NodeId] = {}
        """Checkpoints of nodes that went, and who had them: since this node was started."""
        self.fence: Callable[[int], Awaitable[None]] = _fence_nothing
        """A leader of this epoch asks: orders of older ones are refused before it is answered."""
        self._take = take
        self._connect = connect
        self._keeper = keeper
        self._settings = settings
        self._boot = os.urandom(8).hex()
        self._version = 0
        self._changed = asyncio.Event()
        self._told = asyncio.Event()
        self._leader: NodeId | None = None
        self._me = NodeId("")
        self._tasks: list[asyncio.Task[None]] = []

    def offer(self, methods: Methods) -> None:
        """Answer a new leader."""

        async def ask(body: Any, _caller: Caller) -> bytes:
            if isinstance(body, int):
                await self.fence(body)
            return CODEC.pack(self.full())

        methods.unary(ASK, ask)

    def full(self) -> Report:
        """Everything that this node has."""
        self._version += 1
        return full_report(self._boot, self._version, self._take())

    def note_change(self) -> None:
        """Something of this node may have changed."""
        self._changed.set()

    # -- what this node learns itself ------------------------------------------------------------

    def note_dead(self, node: NodeId) -> None:
        """Gossip believes it dead, or it left."""
        self._set_table(self.table.without(node))

    def note_not_here(self, node: NodeId, digest: Digest) -> None:
        """It was asked for a checkpoint that it has not."""
        self._set_table(self.table.without_model(node, digest))

    def _set_table(self, table: Table) -> None:
        self.had |= gone(self.table, table)
        while len(self.had) > HAD_MAX:
            del self.had[next(iter(self.had))]
        self.table = table
        self._told.set()
        self._told = asyncio.Event()

    async def table_changed(self) -> None:
        """Returns when the table has changed next."""
        await self._told.wait()

    # -- following -----------------------------------------------------------------------------

    def follow(self, leader: NodeId | None, me: NodeId, *, whole: bool = False) -> None:
        """Report to and learn from ``leader``; None: nobody leads. ``whole``: have all of the table told."""
        self._leader, self._me = leader, me
        if whole:
            self.table = Table(self.table.epoch, 0, self.table.inventories)
        for task in self._tasks:
            task.cancel()
        if leader is not None:
            self._tasks = [
                keep_running(lambda: self._for_ever(lambda: self._report(leader))),
                keep_running(lambda: self._for_ever(lambda: self._learn(leader))),
            ]

    def refresh(self) -> None:
        """Have the whole table told again: a node that was noted dead lives."""
        self.follow(self._leader, self._me, whole=True)

    async def _for_ever(self, work: Callable[[], Awaitable[None]]) -> None:
        pause_seconds = RETRY_SECONDS
        while True:
            try:
                await work()
                pause_seconds = RETRY_SECONDS
            except SllmdError as error:
                _log.debug("the leader does not answer", leader=self._leader, reason=str(error))
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, RETRY_SECONDS_MAX)

    async def _report(self, leader: NodeId) -> None:
        """Full, then what changes; returns when a full one is due."""
        loop = asyncio.get_running_loop()
        full_at = loop.time() + self._settings.full_report_interval
        sent = self._take()
        self._version += 1
        report = full_report(self._boot, self._version, sent)
        told = await self._send(leader, report)
        while told and loop.time() < full_at:
            await self._pause()
            inventory = self._take()
            if inventory == sent:
                continue
            self._version += 1
            report = delta_report(self._boot, self._version, report.version, sent, inventory)
            told = await self._send(leader, report)
            sent = inventory

    async def _pause(self) -> None:
        """Until something may have changed, and then a moment; or until a report is due."""
        try:
            async with asyncio.timeout(self._settings.report_interval):
                await self._changed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(COALESCE_SECONDS)
        self._changed.clear()

    async def _send(self, leader: NodeId, report: Report) -> bool:
        if leader == self._me:
            return self._keeper.take(leader, report)
        connection = await self._connect(leader)
        told = await connection.call(REPORT, CODEC.pack(report), deadline_seconds=REPORT_SECONDS)
        return bool(told)

    async def _learn(self, leader: NodeId) -> None:
        async with aclosing(self._deltas(leader)) as deltas:
            async for delta in deltas:
                table = self.table.apply(delta)
                if table is None:
                    raise ProtocolError("the leader's changes do not build on this node's table")
                self._set_table(table)

    async def _deltas(self, leader: NodeId) -> AsyncGenerator[Delta, None]:
        epoch, number = self.table.epoch, self.table.number
        if leader == self._me:
            async with aclosing(self._keeper.deltas(epoch, number)) as deltas:
                async for delta in deltas:
                    yield delta
            return
        connection = await self._connect(leader)
        reader = DeltaReader()
        async with connection.stream(FOLLOW, (epoch, number)) as stream:
            async for item in stream:
                whole = reader.read(item)
                if whole is not None:
                    yield whole

    async def close(self) -> None:
        """Tell and learn nothing more."""
        await end_tasks(*self._tasks)

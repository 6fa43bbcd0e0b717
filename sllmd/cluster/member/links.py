"""Messages to other nodes, and the connection each of them takes.

A message is sent at once or not at all: raft counts on neither. The first few of a connection that is being
made wait for it, because an election's first question lost is an election lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sllmd.core.errors import SllmdError
from sllmd.core.ids import NodeId
from sllmd.telemetry.supervising import end_tasks
from sllmd.wire.rpc.connection import Connection

Connect = Callable[[NodeId], Awaitable[Connection]]

WAITING_MAX = 64
"""Messages that wait for one connection; more would be old when they arrive."""
QUIET_SECONDS = 1.0
"""A connection that brought nothing for so long gives way to one that does: after a partition the side
that dials anew is heard at once, an old connection only when TCP tries again."""


class _Link:
    """The way to one node."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.heard_at = 0.0
        self.waiting: list[bytes] = []
        self.dialling: asyncio.Task[None] | None = None


class Links:
    """One per node. ``connect`` makes connections, or finds those that are there."""

    def __init__(self, connect: Connect, method: str) -> None:
        self._connect = connect
        self._method = method
        self._loop = asyncio.get_running_loop()
        self._links: dict[NodeId, _Link] = {}

    def heard(self, node: NodeId, connection: Connection) -> None:
        """A message of this node came over this connection: it is a way back."""
        link = self._links.setdefault(node, _Link())
        now = self._loop.time()
        usable = link.connection is not None and link.connection.lost is None
        if link.connection is not connection:
            if usable and now - link.heard_at < QUIET_SECONDS:
                return
            link.connection = connection
            self._empty(link)
        link.heard_at = now

    def send(self, node: NodeId, data: bytes) -> None:
        """Send a message; it may get lost."""
        link = self._links.setdefault(node, _Link())
        connection = link.connection
        if connection is not None and connection.lost is None:
            connection.note(self._method, data)
            return
        if len(link.waiting) < WAITING_MAX:
            link.waiting.append(data)
        if link.dialling is None:
            link.dialling = self._loop.create_task(self._dial(node, link))

    async def call(self, node: NodeId, method: str, body: Any, *, deadline_seconds: float) -> Any:
        """Ask a node; raises what ``Connection.call`` raises."""
        connection = await self._connect(node)
        return await connection.call(method, body, deadline_seconds=deadline_seconds)

    async def connection(self, node: NodeId) -> Connection:
        """A connection to this node."""
        return await self._connect(node)

    async def _dial(self, node: NodeId, link: _Link) -> None:
        try:
            link.connection = await self._connect(node)
            link.heard_at = self._loop.time()
            self._empty(link)
        except SllmdError:
            link.waiting.clear()  # raft sends again what matters
        finally:
            link.dialling = None

    def _empty(self, link: _Link) -> None:
        waiting, link.waiting = link.waiting, []
        for data in waiting:
            if link.connection is not None:
                link.connection.note(self._method, data)

    async def close(self) -> None:
        """Stop dialling. The connections belong to whoever made them."""
        await end_tasks(*(link.dialling for link in self._links.values()))

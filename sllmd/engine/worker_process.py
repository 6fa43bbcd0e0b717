"""A worker as the daemon sees it, waiting or attached.

What its messages mean is its handler's business: a replica's, once it is attached.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from sllmd.core.errors import ProtocolError
from sllmd.engine.messages import Message, Stop, Waiting
from sllmd.engine.peer import Peer
from sllmd.engine.postmortem import Cause
from sllmd.engine.process import ChildProcess
from sllmd.engine.settings import WorkerSettings


class WorkerProcess(Peer):
    """A worker."""

    def __init__(
        self, worker_id: int, process: ChildProcess, connection: socket.socket, settings: WorkerSettings
    ) -> None:
        super().__init__("the worker", process, connection, settings)
        self.worker_id = worker_id
        self.waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Resolved when it is warm."""
        self.on_message: Callable[[Message], None] | None = None

    async def stop(self, cause: Cause) -> None:
        """Ask it to exit, then make it; returns when it is reaped."""
        if self._killed_because is None:
            self._killed_because = cause
        self.send(Stop())
        await self.reaped(self._settings.stop_timeout_seconds)

    def _take(self, message: Message, descriptors: list[int]) -> None:  # noqa: ARG002 - none are expected
        if isinstance(message, Waiting) and not self.waiting.done():
            self.waiting.set_result(None)
        elif self.on_message is not None:
            self.on_message(message)
        else:
            raise ProtocolError(f"a waiting worker sent {type(message).__name__}")

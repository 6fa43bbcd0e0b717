"""A process of ours that the daemon exchanges messages with: what the zygote and workers have in common.

Owns: its socket, and finding out why it ended. What its messages mean is said by subclasses in ``_take``.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from sllmd.core.errors import ProtocolError
from sllmd.engine.messages import Failed, Message, decode, encode
from sllmd.engine.postmortem import Cause, explain
from sllmd.engine.process import ChildProcess
from sllmd.engine.settings import WorkerSettings
from sllmd.wire.frames import Channel, close_descriptors


class Peer(ABC):
    """A process at the other end of a socket."""

    def __init__(
        self, who: str, process: ChildProcess, connection: socket.socket, settings: WorkerSettings
    ) -> None:
        self.process = process
        self._who = who
        self._settings = settings
        self.last_words: Failed | None = None
        """What it said itself about why it ends."""
        self._killed_because: Cause | None = None
        self._hung_up = asyncio.get_running_loop().create_future()
        self._channel = Channel(
            connection,
            frame_bytes_max=settings.frame_bytes_max,
            on_frame=self._on_frame,
            on_closed=self._on_closed,
        )
        self.gone: asyncio.Task[Cause] = asyncio.create_task(self._end(), name=f"end of {who}")
        """Resolved with the cause when the process is reaped."""

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send, now or as the socket takes it; nothing happens when the process is gone.

        ``descriptors`` must stay open until ``drained`` returns.
        """
        self._channel.send(encode(message), descriptors)

    async def drained(self) -> None:
        """Return when everything sent is with the kernel, or the process is gone."""
        await self._channel.drained()

    async def first_of(self, answer: asyncio.Future[Any], timeout_seconds: float) -> None:
        """Return when ``answer`` is there, this process is gone, or the time is up."""
        await asyncio.wait([answer, self.gone], timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)

    def kill(self, cause: Cause) -> None:
        """End it now; ``cause`` is what everybody will hear."""
        if self._killed_because is None:
            self._killed_because = cause
        self.process.kill()

    async def reaped(self, timeout_seconds: float) -> None:
        """Give it so long to end, then make it; returns when it is reaped."""
        await asyncio.wait([self.gone], timeout=timeout_seconds)
        self.process.kill()
        await asyncio.wait([self.gone])

    @abstractmethod
    def _take(self, message: Message, descriptors: list[int]) -> None:
        """Act on a message; ProtocolError when it makes no sense. Descriptors taken are removed."""

    def _on_frame(self, value: Any, descriptors: list[int]) -> None:
        try:
            message = decode(value)
            if isinstance(message, Failed):
                self.last_words = message
            else:
                self._take(message, descriptors)
        except ProtocolError as error:
            self._broke_the_protocol(error)
        finally:
            close_descriptors(descriptors)

    def _on_closed(self, error: ProtocolError | None) -> None:
        self._hung_up.set_result(None)
        if error is not None:
            self._broke_the_protocol(error)

    def _broke_the_protocol(self, error: ProtocolError) -> None:
        self.kill(Cause(f"{self._who} broke the protocol: {error.message}", error.hint))

    async def _end(self) -> Cause:
        exited = self.process.exited
        await asyncio.wait([self._hung_up, exited], return_when=asyncio.FIRST_COMPLETED)
        if not exited.done():
            # It closed its socket: it is about to end, or is of no use any more.
            await asyncio.wait([exited], timeout=self._settings.stop_timeout_seconds)
            self.process.kill()
        exit_code = await asyncio.shield(exited)
        if self._killed_because is None and not self._channel.closed:
            # What it sent before it ended, its last words maybe, is still in the socket.
            await asyncio.wait([self._hung_up], timeout=self._settings.stop_timeout_seconds)
        self._channel.close()
        return explain(
            self._who,
            exit_code=exit_code,
            output=self.process.output.lines,
            last_words=self.last_words,
            killed_because=self._killed_because,
        )

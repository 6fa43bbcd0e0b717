"""One sealed question, one sealed answer, over a TCP connection of their own.

::

    length, u32 | box        and the same back

For what does not fit a datagram, and for networks that lose datagrams and nothing else. Whoever sends
anything that is no box of a member is cut off at once, and counted.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable

from sllmd.core.errors import ProtocolError
from sllmd.wire.addresses import split_address
from sllmd.wire.seal import OVERHEAD_BYTES, Drop, Sealer

_LENGTH = struct.Struct("!I")


async def inquire(
    sealer: Sealer, address: str, question: bytes, *, bytes_max: int, timeout_seconds: float
) -> bytes:
    """Ask, and return the answer.

    Raises OSError when nobody answers there, TimeoutError when not in time, ProtocolError when the answer is
    none of a member of this cluster.
    """
    async with asyncio.timeout(timeout_seconds):
        host, port = split_address(address)
        reader, writer = await asyncio.open_connection(host, port)
        try:
            await _write(writer, sealer.seal(question))
            answer = await _read(reader, sealer, bytes_max)
        finally:
            writer.close()
    if isinstance(answer, Drop):
        raise ProtocolError(f"{address} gave no answer of this cluster ({answer})")
    return answer


class InquiryServer:
    """Answers questions. ``on_question(question)`` returns the answer, or None to give none."""

    def __init__(
        self,
        sealer: Sealer,
        *,
        bytes_max: int,
        connections_max: int,
        timeout_seconds: float,
        on_question: Callable[[bytes], Awaitable[bytes | None]],
    ) -> None:
        self._sealer = sealer
        self._bytes_max = bytes_max
        self._connections_max = connections_max
        self._timeout_seconds = timeout_seconds
        self._on_question = on_question
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.dropped: Counter[Drop] = Counter()
        self.answered = 0

    async def open(self, listening: socket.socket) -> None:
        """Take over a bound socket; ``close`` closes it."""
        self._server = await asyncio.start_server(self._accept, sock=listening)

    async def close(self) -> None:
        """Close the socket and every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= self._connections_max:
            self.dropped[Drop.FULL] += 1
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._serve(reader, writer)
        except (OSError, TimeoutError):
            self.dropped[Drop.SHORT] += 1
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await _read(reader, self._sealer, self._bytes_max)
        if isinstance(question, Drop):
            self.dropped[question] += 1
            return
        answer = await self._on_question(question)
        if answer is not None:
            await _write(writer, self._sealer.seal(answer))
            self.answered += 1


async def _write(writer: asyncio.StreamWriter, box: bytes) -> None:
    writer.write(_LENGTH.pack(len(box)) + box)
    await writer.drain()


async def _read(reader: asyncio.StreamReader, sealer: Sealer, bytes_max: int) -> bytes | Drop:
    """The limit is checked before a byte of it takes up memory."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > bytes_max:
            return Drop.OVERSIZED
        if length < OVERHEAD_BYTES:
            return Drop.SHORT
        return sealer.open(await reader.readexactly(length))
    except asyncio.IncompleteReadError:
        return Drop.SHORT

"""A TCP cable on loopback that can be pulled out and put back, or left in with nothing coming through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

CHUNK_BYTES = 1 << 16
YIELDS = 3


class Cable:
    """Leads from a port of its own to another one. Made by ``plugged``."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()

    async def plug_in(self) -> Self:
        """Connections are taken again."""
        if self._server is not None:
            return self
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def pull_out(self) -> None:
        """Connections break, and new ones are refused."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for _ in range(YIELDS):
            await asyncio.sleep(0)  # what was accepted just now gets a writer that can be aborted
        for writer in self._writers:
            writer.transport.abort()
        self._flows.set()
        if self._carrying:
            await asyncio.wait(self._carrying)

    def block(self) -> None:
        """Connections stay, and what is sent over them does not arrive until ``unblock``."""
        self._flows.clear()

    def unblock(self) -> None:
        """What was sent arrives late."""
        self._flows.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)
        ends = [writer]
        self._writers.add(writer)
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            ends.append(there_writer)
            self._writers.add(there_writer)
            await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer))
        except OSError:
            pass  # nobody is at the other end: hang up on this one, too
        finally:
            for end in ends:
                end.transport.abort()
                self._writers.discard(end)
            await asyncio.sleep(0)  # so that what is aborted is gone

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def plugged(target_port: int) -> AsyncIterator[Cable]:
    """A cable to this port; gone afterwards."""
    cable = await Cable(target_port).plug_in()
    try:
        yield cable
    finally:
        await cable.pull_out()

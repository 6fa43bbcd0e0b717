"""What goes out: everything that is put here in one turn of the loop leaves in one write.

Items of all streams of a connection share a frame, so that a step of sixteen generations is one frame, one
TLS record and one system call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sllmd.core.errors import PeerUnreachable, ProtocolError
from sllmd.wire.rpc.envelope import ITEM_OVERHEAD_BYTES, Kind, frame
from sllmd.wire.rpc.hello import VERSIONS
from sllmd.wire.rpc.settings import RpcSettings

_ITEMS_FRAME_BYTES = 64 * 1024
"""A frame of items is closed beyond this: the peer can start on it."""


class Outlet:
    """The outgoing half of a connection. Belongs to the loop's thread."""

    def __init__(self, settings: RpcSettings, on_overflow: Callable[[ProtocolError], None]) -> None:
        self.version = VERSIONS[1]
        self._settings = settings
        self._on_overflow = on_overflow
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.WriteTransport | None = None
        self._frames: list[bytes] = []
        self._frames_bytes = 0
        self._items: list[int | bytes] = []
        self._items_bytes = 0
        self._flush_due = False
        self._paused = False
        self._room: asyncio.Future[None] | None = None

    def open(self, transport: asyncio.WriteTransport) -> None:
        """From here on bytes leave."""
        self._transport = transport
        transport.set_write_buffer_limits(high=self._settings.output_wait_bytes)

    @property
    def full(self) -> bool:
        """Whether answers and items have to wait (``room``)."""
        pending = self._frames_bytes + self._items_bytes
        return self._paused or pending >= self._settings.output_wait_bytes

    async def room(self) -> None:
        """Wait until ``full`` is False. Raises PeerUnreachable when that will never be."""
        while self.full:
            if self._transport is None:
                raise PeerUnreachable("the connection is closed")
            if self._room is None:
                self._room = self._loop.create_future()
            await asyncio.shield(self._room)

    def put(self, kind: Kind, message: Any) -> None:
        """Send a frame in this turn. ProtocolError when it is over the limit; dropped when closed."""
        if self._transport is None:
            return
        data = frame(kind, message, version=self.version, frame_bytes_max=self._settings.frame_bytes_max)
        self._close_items()  # what was put before leaves before
        self._add(data)

    def item(self, call: int, payload: bytes) -> None:
        """Send an item of a stream in this turn."""
        if self._transport is None:
            return
        self._items += (call, payload)
        self._items_bytes += len(payload) + ITEM_OVERHEAD_BYTES
        if self._items_bytes >= _ITEMS_FRAME_BYTES:
            self._close_items()
        self._flush_soon()

    def _close_items(self) -> None:
        if self._items:
            items, self._items, self._items_bytes = self._items, [], 0
            limit = self._settings.frame_bytes_max
            self._add(frame(Kind.ITEMS, items, version=self.version, frame_bytes_max=limit))

    def _add(self, data: bytes) -> None:
        self._frames.append(data)
        self._frames_bytes += len(data)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what was put so far."""
        self._flush_due = False
        self._close_items()
        frames, self._frames, self._frames_bytes = self._frames, [], 0
        if self._transport is None or not frames:
            return
        self._transport.write(frames[0] if len(frames) == 1 else b"".join(frames))
        if self._transport is None:  # a write that fails may close us before it returns
            return
        waiting = self._transport.get_write_buffer_size()
        if waiting > self._settings.output_bytes_max:
            self._on_overflow(ProtocolError(f"it leaves {waiting} bytes unread"))
        elif not self._paused:
            self._wake()

    def pause(self) -> None:
        """The socket takes no more for now."""
        self._paused = True

    def resume(self) -> None:
        """It takes more."""
        self._paused = False
        self._wake()

    def close(self) -> None:
        """Drop what has not left; whoever waits for room is told."""
        self._transport = None
        self._frames, self._items = [], []
        self._frames_bytes = self._items_bytes = 0
        self._wake()

    def _wake(self) -> None:
        if self._room is not None:
            self._room.set_result(None)
            self._room = None

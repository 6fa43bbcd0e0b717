"""Frames of the wire between nodes: length, version, kind, payload. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

from sllmd.core.errors import ProtocolError
from sllmd.wire.codec import pack_payload

HEADER = struct.Struct("<IBB")
FIRST_BUFFER_BYTES = 16 * 1024
BUFFER_BYTES_MAX = 256 * 1024
"""A connection's buffer grows to this while reads fill it; beyond it only for a frame that needs more."""
ITEM_OVERHEAD_BYTES = 16
"""Added to each item's size where it counts against a limit: small ones cost more than their bytes."""


class Kind(IntEnum):
    """What a frame is; numbers never change their meaning."""

    HELLO = 1
    CALL = 2
    RESULT = 3
    ITEMS = 4
    END = 5
    FAULT = 6
    CREDIT = 7
    CANCEL = 8
    NOTE = 9
    PING = 10
    PONG = 11
    GOODBYE = 12
    WELCOME = 13


def frame(kind: int, message: Any, *, version: int, frame_bytes_max: int) -> bytes:
    """A whole frame; ProtocolError when ``message`` is over the limit or no msgpack value."""
    payload = pack_payload(message, frame_bytes_max)
    return HEADER.pack(len(payload), version, kind) + payload


class Inlet:
    """Bytes in, frames out. Its memory grows with the bytes that arrive, not with what is announced."""

    def __init__(self, frame_bytes_max: int) -> None:
        self.frame_bytes_max = frame_bytes_max
        """May be raised once the other side is known."""
        self._buffer = bytearray(FIRST_BUFFER_BYTES)
        self._start = 0
        self._end = 0

    def space(self) -> memoryview:
        """Where the next bytes go; never empty."""
        if self._end == len(self._buffer):
            self._make_space()
        return memoryview(self._buffer)[self._end :]

    def frames(self, arrived: int) -> Iterator[tuple[int, int, memoryview]]:
        """Version, kind and payload of every whole frame, now that ``arrived`` bytes lie in ``space``.

        A payload is good until the next one is asked for. ProtocolError when a frame is over the limit.
        """
        self._end += arrived
        filled = self._end == len(self._buffer)
        with memoryview(self._buffer) as view:
            while self._end - self._start >= HEADER.size:
                length, version, kind = HEADER.unpack_from(view, self._start)
                if length > self.frame_bytes_max:
                    raise ProtocolError(
                        f"the other side announces {length} bytes, over the limit of {self.frame_bytes_max}"
                    )
                payload = self._start + HEADER.size
                if self._end < payload + length:
                    break
                self._start = payload + length
                with view[payload : payload + length] as content:
                    yield version, kind, content
        if self._start == self._end:
            self._start = self._end = 0
            self._resize(filled)

    def _resize(self, filled: bool) -> None:
        """Empty now: larger if the last read filled it, smaller again after a large frame."""
        size = len(self._buffer)
        if filled and size < BUFFER_BYTES_MAX:
            self._buffer = bytearray(2 * size)
        elif size > BUFFER_BYTES_MAX:
            self._buffer = bytearray(BUFFER_BYTES_MAX)

    def _make_space(self) -> None:
        """Half a frame reaches the buffer's end: move it to the front, or double the buffer."""
        rest = self._end - self._start
        size = len(self._buffer)
        target = self._buffer if rest <= size // 2 else bytearray(2 * size)
        target[:rest] = bytes(memoryview(self._buffer)[self._start : self._end])
        self._buffer, self._start, self._end = target, 0, rest

"""A blocking socket: frames, and bytes that go straight into or out of the caller's memory."""

from __future__ import annotations

import os
import socket
import ssl
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.ciphers import AEADEncryptionContext, Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from sllmd.core.errors import ProtocolError
from sllmd.wire.bulk.messages import MESSAGE_BYTES_MAX, VERSION, Kind
from sllmd.wire.codec import unpack_payload
from sllmd.wire.rpc.envelope import HEADER, frame

PIECE_BYTES = 512 * 1024
"""Moved at a time: it stays in the processor's cache between copying and tagging it."""
_TIMEOUT = struct.Struct("@ll")


class Span(NamedTuple):
    """A piece of a file."""

    descriptor: int
    offset_bytes: int
    size_bytes: int


Piece = memoryview | Span
"""Bytes to send. Memory is the faster: nothing is copied but into the socket."""


class Tagger:
    """One connection's tags. Both ends count chunks, so that none can be left out, repeated or exchanged."""

    def __init__(self, key: bytes) -> None:
        self._algorithm = AES(key)
        self._count = 0

    def begin(self, request: bytes) -> AEADEncryptionContext:
        """The tag of the next chunk: feed it all bytes, then ``finish``."""
        context = Cipher(self._algorithm, GCM(self._count.to_bytes(12, "big"))).encryptor()
        self._count += 1
        context.authenticate_additional_data(len(request).to_bytes(8, "big") + request)
        return context


def finish(context: AEADEncryptionContext) -> bytes:
    """The tag."""
    context.finalize()
    return context.tag


class Pipe:
    """One connection. Belongs to one thread; ``interrupt`` may come from any.

    Methods raise EOFError when the other side hangs up, TimeoutError when it stalls, OSError.
    """

    def __init__(self, connection: socket.socket, stall_timeout_seconds: float) -> None:
        self.connection = connection
        self._encrypted = isinstance(connection, ssl.SSLSocket)
        self._buffer = memoryview(bytearray(PIECE_BYTES))
        self.limit(stall_timeout_seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def limit(self, stall_timeout_seconds: float) -> None:
        """Longest wait for a byte from here on."""
        if self._encrypted:
            self.connection.settimeout(stall_timeout_seconds)
            return
        # The kernel's own timeouts: Python's would poll before every call and give up whole-chunk reads.
        self.connection.settimeout(None)
        seconds, rest = divmod(stall_timeout_seconds, 1)
        value = _TIMEOUT.pack(int(seconds), max(int(rest * 1e6), 0 if seconds else 1))
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def send(self, kind: Kind, message: Any, *, more: bool = False) -> None:
        """Send a frame; ``more``: bytes follow at once."""
        data = frame(kind, message, version=VERSION, frame_bytes_max=MESSAGE_BYTES_MAX)
        self._send_all(memoryview(data), socket.MSG_MORE if more and not self._encrypted else 0)

    def receive(self) -> tuple[int, Any]:
        """The next frame; ProtocolError when it is none."""
        header = bytearray(HEADER.size)
        self.receive_into(memoryview(header))
        length, version, kind = HEADER.unpack(header)
        if length > MESSAGE_BYTES_MAX:
            raise ProtocolError(f"the other side announces {length} bytes, over {MESSAGE_BYTES_MAX}")
        if version != VERSION:
            raise ProtocolError(f"the other side speaks version {version}, this is {VERSION}")
        payload = bytearray(length)
        self.receive_into(memoryview(payload))
        return kind, unpack_payload(bytes(payload))

    def receive_into(self, view: memoryview) -> None:
        """Fill ``view``."""
        # Without MSG_WAITALL: taking what is there, and giving the sender its window back, is the faster.
        while view:
            try:
                count = self.connection.recv_into(view)
            except BlockingIOError:
                raise TimeoutError("no byte arrived in time") from None
            if not count:
                raise EOFError("the other side hung up")
            view = view[count:]

    def receive_chunk(
        self,
        views: Sequence[memoryview],
        tag: AEADEncryptionContext | None,
        advance: Callable[[int], None],
    ) -> None:
        """Fill ``views``; ``tag`` sees every byte, ``advance`` hears of each piece."""
        for view in views:
            for start in range(0, len(view), PIECE_BYTES):
                piece = view[start : start + PIECE_BYTES]
                self.receive_into(piece)
                if tag is not None:
                    tag.authenticate_additional_data(piece)
                advance(len(piece))

    def send_chunk(self, pieces: Sequence[Piece], tag: AEADEncryptionContext | None) -> None:
        """Send ``pieces``; ``tag`` sees every byte. EOFError when a file turns out shorter."""
        for piece in pieces:
            if isinstance(piece, memoryview):
                self._send_memory(piece, tag)
            else:
                self._send_file(piece, tag)

    def send_bytes(self, data: bytes) -> None:
        """Send bytes outside a frame."""
        self._send_all(memoryview(data), 0)

    def _send_memory(self, view: memoryview, tag: AEADEncryptionContext | None) -> None:
        step = PIECE_BYTES if tag is not None or self._encrypted else max(1, len(view))
        for start in range(0, len(view), step):
            part = view[start : start + step]
            if tag is not None:
                tag.authenticate_additional_data(part)
            self._send_all(part, 0)

    def _send_file(self, span: Span, tag: AEADEncryptionContext | None) -> None:
        # Not sendfile: its page-sized fragments cost the receiver more than twice the time of the copy here
        # (0.30 against 0.12 s per GB). Not mapped either: a mapping of a file that somebody truncates kills.
        offset, left = span.offset_bytes, span.size_bytes
        while left:
            part = self._buffer[: min(left, PIECE_BYTES)]
            count = os.preadv(span.descriptor, [part], offset)
            if not count:
                raise EOFError("a file ends too early")
            self._send_memory(part[:count], tag)
            offset, left = offset + count, left - count

    def _send_all(self, data: memoryview, flags: int) -> None:
        while data:
            try:
                count = self.connection.send(data, flags) if flags else self.connection.send(data)
            except BlockingIOError:
                raise TimeoutError("the other side takes no bytes") from None
            data = data[count:]

    def interrupt(self) -> None:
        """Have a read or write in flight return, from another thread."""
        try:
            # Not SSLSocket's own method: that turns TLS off under the thread that is reading.
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)
        except OSError:
            return  # it is not connected any more

    def close(self) -> None:
        """Close the socket."""
        self.connection.close()

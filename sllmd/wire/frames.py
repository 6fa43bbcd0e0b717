"""Frames: one msgpack value each, length first, over a Unix stream socket, descriptors beside them.

::

    "SL" | descriptor count, u16 | payload bytes, u32 | one byte per batch of descriptors | payload

Every batch of descriptors travels as ancillary data of its own byte, so that a reader knows from the header
how many to expect and none is lost between two frames. ``Channel`` is the asyncio side (callbacks, no task
per message), ``BlockingChannel`` the threaded one. Neither knows what a message means.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from sllmd.core.errors import ProtocolError
from sllmd.wire.codec import pack_payload, unpack_payload

DESCRIPTORS_PER_BATCH = 200
"""The kernel takes 253 (SCM_MAX_FD) in one message."""
READ_BYTES = 64 * 1024
"""One read of the asyncio side; level-triggered, so that one busy peer does not keep the loop."""
DESCRIPTOR_RETRY_SECONDS = 0.005
"""The kernel bounds descriptors under way (ETOOMANYREFS); the peer takes them out within milliseconds."""

_MAGIC = b"SL"
_HEADER = struct.Struct("<2sHI")
_DESCRIPTORS_MAX = 0xFFFF
_ANCILLARY_BYTES = socket.CMSG_SPACE(DESCRIPTORS_PER_BATCH * array.array("i").itemsize)

Frame = tuple[Any, list[int]]
"""A message and the descriptors that came with it; the receiver closes them."""


def pack(message: Any, descriptor_count: int, frame_bytes_max: int) -> tuple[bytes, bytes]:
    """Header and payload of a frame; ProtocolError when it is over a limit or no msgpack value."""
    payload = pack_payload(message, frame_bytes_max)
    if descriptor_count > _DESCRIPTORS_MAX:
        raise ProtocolError(f"a message cannot carry {descriptor_count} descriptors")
    return _HEADER.pack(_MAGIC, descriptor_count, len(payload)), payload


def _unpack_header(header: bytes | memoryview, frame_bytes_max: int) -> tuple[int, int]:
    """Descriptor count and payload length."""
    magic, descriptor_count, length = _HEADER.unpack(header)
    if magic != _MAGIC:
        raise ProtocolError("the other side does not speak in frames")
    if length > frame_bytes_max:
        raise ProtocolError(f"the other side announces {length} bytes, over the limit of {frame_bytes_max}")
    return descriptor_count, length


def _batch_count(descriptor_count: int) -> int:
    return -(-descriptor_count // DESCRIPTORS_PER_BATCH)


def _batches(descriptors: Sequence[int]) -> Iterator[Sequence[int]]:
    return (
        descriptors[i : i + DESCRIPTORS_PER_BATCH] for i in range(0, len(descriptors), DESCRIPTORS_PER_BATCH)
    )


def _rights(descriptors: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]


def _received_descriptors(ancillary: list[tuple[int, int, bytes]], flags: int) -> list[int]:
    received = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
    if flags & socket.MSG_CTRUNC:
        close_descriptors(received)
        raise ProtocolError(
            "descriptors were lost on the way", hint="raise the limit of open files (ulimit -n, LimitNOFILE=)"
        )
    return list(received)


def close_descriptors(descriptors: Sequence[int]) -> None:
    """Close all of ``descriptors``."""
    for descriptor in descriptors:
        os.close(descriptor)


class Decoder:
    """Bytes and descriptors in, frames out, whatever the boundaries of reads."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._needed_bytes = _HEADER.size
        """Before the buffer holds so many there is nothing to look at: a large frame is parsed once."""
        self._descriptors: deque[int] = deque()

    def feed(self, data: memoryview, descriptors: Sequence[int] = ()) -> list[Frame]:
        """Frames that ``data`` completes; ProtocolError, and no frame at all, on any that is none."""
        self._descriptors.extend(descriptors)
        if not self._buffer:
            frames, consumed = self._frames(data)
            self._buffer += data[consumed:]
            return frames
        self._buffer += data
        if len(self._buffer) < self._needed_bytes:
            return []
        with memoryview(self._buffer) as view:
            frames, consumed = self._frames(view)
        del self._buffer[:consumed]
        return frames

    def close(self) -> None:
        """Close descriptors of frames that never became whole."""
        close_descriptors(tuple(self._descriptors))
        self._descriptors.clear()

    def _frames(self, data: memoryview) -> tuple[list[Frame], int]:
        frames: list[Frame] = []
        try:
            return frames, self._parse(data, frames)
        except ProtocolError:
            for _, descriptors in frames:
                close_descriptors(descriptors)
            raise

    def _parse(self, data: memoryview, frames: list[Frame]) -> int:
        """Add the whole frames in ``data`` to ``frames``; how many bytes they take."""
        start = 0
        self._needed_bytes = _HEADER.size
        while len(data) - start >= _HEADER.size:
            count, length = _unpack_header(data[start : start + _HEADER.size], self._frame_bytes_max)
            payload_start = start + _HEADER.size + _batch_count(count)
            if len(data) < payload_start + length:
                self._needed_bytes = payload_start + length - start
                break
            message = unpack_payload(data[payload_start : payload_start + length])
            frames.append((message, self._take(count)))
            start = payload_start + length
        return start

    def _take(self, count: int) -> list[int]:
        if count > len(self._descriptors):
            raise ProtocolError(f"a frame announces {count} descriptors and {len(self._descriptors)} came")
        taken = list(islice(self._descriptors, count))
        for _ in range(count):
            self._descriptors.popleft()
        return taken


class BlockingChannel:
    """The threaded side: ``send`` from any thread, ``receive`` from one."""

    def __init__(self, connection: socket.socket, *, frame_bytes_max: int) -> None:
        self._connection = connection
        self._frame_bytes_max = frame_bytes_max
        self._send_lock = threading.Lock()

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Write a frame whole; OSError when the other side is gone."""
        header, payload = pack(message, len(descriptors), self._frame_bytes_max)
        with self._send_lock:
            if not descriptors:
                self._connection.sendall(header + payload)
                return
            self._connection.sendall(header)
            for batch in _batches(descriptors):
                self._connection.sendmsg([b"\0"], _rights(batch))
            self._connection.sendall(payload)

    def receive(self) -> Frame:
        """The next frame; EOFError when the other side is gone, ProtocolError when it sends no frames."""
        count, length = _unpack_header(self._exactly(_HEADER.size), self._frame_bytes_max)
        descriptors: list[int] = []
        try:
            self._receive_descriptors(count, descriptors)
            return unpack_payload(self._exactly(length)), descriptors
        except BaseException:
            close_descriptors(descriptors)
            raise

    def _receive_descriptors(self, count: int, descriptors: list[int]) -> None:
        for _ in range(_batch_count(count)):
            data, ancillary, flags, _address = self._connection.recvmsg(
                1, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
            if not data:
                raise EOFError("the other side closed within a frame")
            descriptors += _received_descriptors(ancillary, flags)
        if len(descriptors) != count:
            raise ProtocolError(f"a frame announces {count} descriptors and {len(descriptors)} came")

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._connection.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()

    def _exactly(self, count: int) -> bytes:
        buffer = bytearray(count)
        view = memoryview(buffer)
        while view:
            received = self._connection.recv_into(view)
            if not received:
                raise EOFError("the other side closed")
            view = view[received:]
        return bytes(buffer)


class Channel:
    """The asyncio side of a socket.

    ``on_frame`` is called on the loop with every frame as it arrives; ``on_closed`` once, with None when the
    other side closed and with the error when it broke the protocol. Neither is called after ``close``.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        frame_bytes_max: int,
        on_frame: Callable[[Any, list[int]], None],
        on_closed: Callable[[ProtocolError | None], None],
    ) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._frame_bytes_max = frame_bytes_max
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._decoder = Decoder(frame_bytes_max)
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._outgoing: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._drained: asyncio.Future[None] | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(connection.fileno(), self._readable)

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closed

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Send a frame, now or as the socket takes it; dropped when the channel is closed.

        ``descriptors`` must stay open until ``drained`` returns. ProtocolError when it is over a limit.
        """
        if self._closed:
            return
        header, payload = pack(message, len(descriptors), self._frame_bytes_max)
        was_empty = not self._outgoing
        if descriptors:
            self._outgoing.append((memoryview(header), ()))
            self._outgoing.extend((memoryview(b"\0"), batch) for batch in _batches(descriptors))
            self._outgoing.append((memoryview(payload), ()))
        else:
            self._outgoing.append((memoryview(header + payload), ()))
        if was_empty:
            self._write()

    async def drained(self) -> None:
        """Return when everything sent so far is with the kernel, or the channel is closed."""
        while self._outgoing and not self._closed:
            if self._drained is None:
                self._drained = self._loop.create_future()
            await asyncio.shield(self._drained)

    def close(self) -> None:
        """Close the socket; idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._connection.fileno())
        self._loop.remove_writer(self._connection.fileno())
        self._connection.close()
        self._decoder.close()
        self._outgoing.clear()
        self._wake_drained()

    def _readable(self) -> None:
        try:
            count, ancillary, flags, _address = self._connection.recvmsg_into(
                [self._buffer], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(None)
            return
        if not count:
            self._end(None)
            return
        try:
            descriptors = _received_descriptors(ancillary, flags) if ancillary else ()
            frames = self._decoder.feed(self._view[:count], descriptors)
        except ProtocolError as error:
            self._end(error)
            return
        for message, received in frames:
            if self._closed:
                close_descriptors(received)
            else:
                self._on_frame(message, received)

    def _write(self) -> None:
        while self._outgoing:
            data, descriptors = self._outgoing[0]
            try:
                sent = self._connection.sendmsg([data], _rights(descriptors) if descriptors else [])
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._connection.fileno(), self._writable)
                return
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:
                    self._loop.call_later(DESCRIPTOR_RETRY_SECONDS, self._write)
                    return
                self._outgoing.clear()  # the reader will see the end and tell
                break
            if sent == len(data):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = (data[sent:], ())
        self._wake_drained()

    def _writable(self) -> None:
        self._loop.remove_writer(self._connection.fileno())
        self._write()

    def _end(self, error: ProtocolError | None) -> None:
        if not self._closed:
            self.close()
            self._on_closed(error)

    def _wake_drained(self) -> None:
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

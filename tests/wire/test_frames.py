import asyncio
import os
import socket
import struct
import tempfile
import threading
from pathlib import Path
from typing import Any

import msgpack
import pytest

from sllmd.core.errors import ProtocolError
from sllmd.wire.frames import BlockingChannel, Channel, Decoder, close_descriptors, pack

LIMIT = 1024 * 1024


def frame(message: Any) -> bytes:
    return b"".join(pack(message, 0, LIMIT))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Received:
    """Collects what an asyncio channel hears."""

    def __init__(self, connection: socket.socket) -> None:
        self.frames: asyncio.Queue[tuple[Any, list[int]]] = asyncio.Queue()
        self.closed: asyncio.Future[ProtocolError | None] = asyncio.get_running_loop().create_future()
        self.channel = Channel(
            connection,
            frame_bytes_max=LIMIT,
            on_frame=lambda message, descriptors: self.frames.put_nowait((message, descriptors)),
            on_closed=self.closed.set_result,
        )


@pytest.mark.parametrize("step", [1, 3, 7, 8, 9, 1000])
def test_decoder_does_not_care_where_reads_end(step: int) -> None:
    messages = [[], {"a": 1}, "x" * 50, list(range(100)), None, b"\0" * 20]
    stream = b"".join(frame(message) for message in messages)
    decoder = Decoder(LIMIT)
    heard = []
    for start in range(0, len(stream), step):
        heard += [message for message, _ in decoder.feed(memoryview(stream[start : start + step]))]
    assert heard == [(), {"a": 1}, "x" * 50, tuple(range(100)), None, b"\0" * 20]


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "does not speak"),
        (struct.pack("<2sHI", b"SL", 0, LIMIT + 1), "over the limit"),
        (struct.pack("<2sHI", b"SL", 0, 1) + b"\xc1", "not msgpack"),
        (struct.pack("<2sHI", b"SL", 0, 2) + b"\x01\x01", "not msgpack"),
        (struct.pack("<2sHI", b"SL", 0, 1) + b"\x92", "not msgpack"),
        (struct.pack("<2sHI", b"SL", 0, 2) + b"\xa1\xff", "not msgpack"),
        (struct.pack("<2sHI", b"SL", 0, 5000) + b"\x91" * 5000, "not msgpack"),
        (struct.pack("<2sHI", b"SL", 2, 1) + b"\0\xc0", "2 descriptors and 0 came"),
    ],
)
def test_garbage_is_an_error(data: bytes, match: str) -> None:
    with pytest.raises(ProtocolError, match=match):
        Decoder(LIMIT).feed(memoryview(data))
    left, right = socket.socketpair()
    left.sendall(data)
    with pytest.raises(ProtocolError, match=match.replace("2 desc", ".*desc")), left, right:
        BlockingChannel(right, frame_bytes_max=LIMIT).receive()


def test_sender_refuses_what_the_receiver_would() -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        pack(b"x" * LIMIT, 0, LIMIT)


@pytest.mark.parametrize("message", [2**70, object(), ["x", {1, 2}], "\udc80"])
def test_what_msgpack_does_not_know_is_refused(message: object) -> None:
    with pytest.raises(ProtocolError, match="cannot be sent"):
        pack(message, 0, LIMIT)


@pytest.mark.parametrize("cut", [0, 3, 8, 12])
def test_blocking_side_tells_a_cut_stream(cut: int) -> None:
    left, right = socket.socketpair()
    with right:
        left.sendall(frame(list(range(50)))[:cut])
        left.close()
        with pytest.raises(EOFError):
            BlockingChannel(right, frame_bytes_max=LIMIT).receive()


@pytest.mark.parametrize("count", [1, 199, 200, 201, 650])
async def test_descriptors_arrive_whole_and_in_order_both_ways(count: int, tmp_path: Path) -> None:
    before = open_descriptors()
    left, right = socket.socketpair()
    blocking, received = BlockingChannel(left, frame_bytes_max=LIMIT), Received(right)
    files = [os.memfd_create(str(i)) for i in range(count)]
    inodes = [os.fstat(descriptor).st_ino for descriptor in files]

    def echo() -> None:
        blocking.send("nothing with it")
        blocking.send("files", files)
        blocking.send("after")
        message, came = blocking.receive()
        assert message == "back"
        assert [os.fstat(descriptor).st_ino for descriptor in came] == inodes
        assert not any(os.get_inheritable(descriptor) for descriptor in came)
        close_descriptors(came)

    task = asyncio.create_task(asyncio.to_thread(echo))
    assert await received.frames.get() == ("nothing with it", [])
    message, descriptors = await received.frames.get()
    assert message == "files"
    assert [os.fstat(descriptor).st_ino for descriptor in descriptors] == inodes
    assert await received.frames.get() == ("after", [])
    received.channel.send("back", descriptors)
    await task
    received.channel.close()
    blocking.close()
    close_descriptors([*files, *descriptors])
    assert open_descriptors() == before


async def test_a_reader_that_is_slow_delays_nobody_and_loses_nothing() -> None:
    left, right = socket.socketpair()
    sender = Received(left)
    for i in range(200):
        sender.channel.send([i, b"x" * 10_000])
    drained = asyncio.create_task(sender.channel.drained())
    await asyncio.sleep(0)
    assert not drained.done()
    reader = BlockingChannel(right, frame_bytes_max=LIMIT)
    heard = await asyncio.to_thread(lambda: [reader.receive()[0][0] for _ in range(200)])
    assert heard == list(range(200))
    await drained
    sender.channel.close()
    reader.close()


async def test_end_and_garbage_are_told_once_and_cost_no_descriptor() -> None:
    before = open_descriptors()
    left, right = socket.socketpair()
    received = Received(right)
    left.close()
    assert await received.closed is None
    assert received.channel.closed
    received.channel.send("into the void")
    left, right = socket.socketpair()
    received = Received(right)
    with tempfile.TemporaryFile() as file:
        socket.send_fds(left, [b"rubbish, with a descriptor"], [file.fileno()])
    assert isinstance(await received.closed, ProtocolError)
    left.close()
    assert open_descriptors() == before


async def test_descriptors_of_an_unfinished_frame_are_closed() -> None:
    before = open_descriptors()
    left, right = socket.socketpair()
    received = Received(right)
    header, _payload = pack("never comes", 1, LIMIT)
    left.sendall(header)
    with tempfile.TemporaryFile() as file:
        socket.send_fds(left, [b"\0"], [file.fileno()])
    left.close()
    assert await received.closed is None
    assert open_descriptors() == before


def test_a_bad_frame_behind_a_good_one_costs_no_descriptor() -> None:
    before = open_descriptors()
    header, payload = pack("good", 1, LIMIT)
    decoder = Decoder(LIMIT)
    with pytest.raises(ProtocolError, match="does not speak"):
        decoder.feed(memoryview(header + b"\0" + payload + b"no frame at all"), [os.memfd_create("good")])
    decoder.close()
    assert open_descriptors() == before


@pytest.mark.parametrize("end", [b"\xc1", b""], ids=["no msgpack", "cut off"])
def test_a_bad_frame_with_descriptors_costs_none(end: bytes) -> None:
    before = open_descriptors()
    left, right = socket.socketpair()
    left.sendall(pack(0, 1, LIMIT)[0])
    with tempfile.TemporaryFile() as file:
        socket.send_fds(left, [b"\0"], [file.fileno()])
    left.sendall(end)
    left.close()
    with right, pytest.raises((ProtocolError, EOFError)):
        BlockingChannel(right, frame_bytes_max=LIMIT).receive()
    assert open_descriptors() == before


def test_threads_send_whole_frames() -> None:
    left, right = socket.socketpair()
    sender = BlockingChannel(left, frame_bytes_max=LIMIT)
    reader = BlockingChannel(right, frame_bytes_max=LIMIT)
    threads = [
        threading.Thread(target=lambda i=i: [sender.send([i] * 5000) for _ in range(20)]) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    heard = [reader.receive()[0] for _ in range(80)]
    for thread in threads:
        thread.join()
    assert all(len(set(message)) == 1 for message in heard)
    sender.close()
    reader.close()


def test_payload_is_plain_msgpack() -> None:
    _header, payload = pack({"a": [1, 2]}, 0, LIMIT)
    assert msgpack.unpackb(payload) == {"a": [1, 2]}

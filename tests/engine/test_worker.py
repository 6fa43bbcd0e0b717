"""Worker, zygote and daemon at the level of frames: what each does when another breaks the rules."""

import asyncio
import os
import queue
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sllmd.core.errors import ModelLoadFailed
from sllmd.engine.fake import FakeSettings
from sllmd.engine.messages import (
    Add,
    Attach,
    Begin,
    Cancel,
    Events,
    Export,
    Exported,
    Mapped,
    Message,
    Ready,
    Stats,
    encode,
)
from sllmd.engine.postmortem import Cause
from sllmd.engine.process import ChildProcess, Output
from sllmd.engine.protocol import EngineOptions
from sllmd.engine.settings import WorkerSettings
from sllmd.engine.worker import Inbox, close_behind
from sllmd.engine.worker_process import WorkerProcess
from sllmd.engine.zygote_process import ZygoteProcess
from sllmd.wire.frames import pack
from tests.engine.conftest import alive
from tests.engine.fakes import manifest, state

SETTINGS = WorkerSettings(engine="fake", frame_bytes_max=1024 * 1024, spawn_timeout_seconds=60)
ATTACH = Attach(
    manifest().model_dump_json(),
    (),
    EngineOptions(threads=1),
    ("cpu",),
    FakeSettings().model_dump_json(),
)


@pytest.fixture
async def zygote(nothing_left: None) -> AsyncIterator[ZygoteProcess]:
    process = ZygoteProcess(SETTINGS)
    await process.ready()
    yield process
    await process.close()


@pytest.fixture
async def worker(zygote: ZygoteProcess) -> WorkerProcess:
    process = await zygote.fork(1)
    await process.first_of(process.waiting, 60)
    assert process.waiting.done()
    return process


def raw_socket(process: Any) -> socket.socket:
    return process._channel._connection


class Heard:
    """Messages of a worker, as they come."""

    def __init__(self, worker: WorkerProcess) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        worker.on_message = self.messages.put_nowait

    async def next(self, kind: type[Message]) -> Any:
        message = await self.messages.get()
        assert isinstance(message, kind), message
        return message


async def serving(worker: WorkerProcess) -> Heard:
    heard = Heard(worker)
    worker.send(ATTACH)
    await heard.next(Mapped)
    worker.send(Begin())
    await heard.next(Ready)
    return heard


GARBAGE = [
    b"GET / HTTP/1.1\r\n\r\n",
    struct.pack("<2sHI", b"SL", 0, 2**31),
    struct.pack("<2sHI", b"SL", 0, 1) + b"\xc1",
    b"".join(pack([99, 1], 0, 100)),
    b"".join(pack("hello", 0, 100)),
    b"".join(pack({1: 2}, 0, 100)),
]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_worker_ends_on_garbage(worker: WorkerProcess, garbage: bytes) -> None:
    raw_socket(worker).sendall(garbage)
    cause = await worker.gone
    assert "ProtocolError" in cause.message


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_zygote_ends_on_garbage(zygote: ZygoteProcess, garbage: bytes) -> None:
    raw_socket(zygote).sendall(garbage)
    assert "ProtocolError" in (await zygote.gone).message
    with pytest.raises(ModelLoadFailed, match="ProtocolError"):
        await zygote.fork(1)


@pytest.mark.parametrize("early", [Begin(), Add(1, state()), Cancel(1)])
async def test_a_worker_refuses_what_comes_too_early(worker: WorkerProcess, early: Message) -> None:
    worker.send(early)
    assert "came before Attach" in (await worker.gone).message


async def test_a_worker_ends_when_the_daemon_hangs_up(worker: WorkerProcess) -> None:
    heard = await serving(worker)
    worker.send(Add(1, state(max_tokens=10**9)))
    await heard.next(Events)
    raw_socket(worker).shutdown(socket.SHUT_RDWR)
    await worker.gone
    assert not alive(worker.process.pid)


async def test_what_is_unknown_is_ignored_by_a_serving_worker(worker: WorkerProcess) -> None:
    heard = await serving(worker)
    worker.send(Cancel(77))
    worker.send(Export(5, 77, True))
    assert (await heard.next(Exported)).state is None


async def test_one_frame_carries_a_step_of_all_rows(worker: WorkerProcess) -> None:
    heard = await serving(worker)
    for handle in range(8):
        worker.send(Add(handle, state(f"g{handle}", [handle], max_tokens=50)))
    sizes = []
    ended = 0
    while ended < 8:
        events = await heard.next(Events)
        sizes.append(len(events.tokens) // 4)
        ended += sum(code != 0 for code in events.tokens[3::4])
    assert max(sizes) == 8


def dummy(settings: WorkerSettings = SETTINGS) -> tuple[WorkerProcess, socket.socket]:
    """A process that is no worker, and the other end of its socket."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    pid = os.posix_spawnp("sleep", ["sleep", "1000"], os.environ)
    os.close(writing)
    process = ChildProcess(pid, os.pidfd_open(pid), Output(reading, "dummy", settings))
    return WorkerProcess(1, process, ours, settings), theirs


@pytest.mark.parametrize(
    "garbage",
    [*GARBAGE, b"".join(pack(encode(Ready({}, 0)), 0, 1000)), b"".join(pack(encode(Begin()), 0, 1000))],
)
async def test_the_daemon_kills_a_worker_that_breaks_the_protocol(nothing_left: None, garbage: bytes) -> None:
    worker, theirs = dummy()
    theirs.sendall(garbage)
    cause = await worker.gone
    assert cause.message.startswith("the worker broke the protocol")
    assert not alive(worker.process.pid)
    theirs.close()


async def test_the_daemon_takes_no_descriptor_from_a_worker(nothing_left: None) -> None:
    worker, theirs = dummy()
    header, payload = pack(encode(Stats(1, None)), 1, 1000)  # type: ignore[arg-type]
    theirs.sendall(header)
    socket.send_fds(theirs, [b"\0"], [theirs.fileno()])
    theirs.sendall(payload)
    assert "broke the protocol" in (await worker.gone).message
    theirs.close()


async def test_a_worker_that_hangs_up_and_stays_is_killed(nothing_left: None) -> None:
    worker, theirs = dummy(WorkerSettings(engine="fake", stop_timeout_seconds=0.05))
    theirs.close()
    assert "SIGKILL" in (await worker.gone).message
    assert not alive(worker.process.pid)


async def test_the_first_cause_is_the_one_that_is_told(nothing_left: None) -> None:
    worker, theirs = dummy()
    worker.kill(Cause("first"))
    worker.kill(Cause("second"))
    assert await worker.gone == Cause("first")
    theirs.close()


async def test_output_is_kept_line_by_line_within_bounds(nothing_left: None) -> None:
    settings = WorkerSettings(engine="fake", output_lines_max=10, output_line_bytes_max=256)
    reading, writing = os.pipe()
    output = Output(reading, "test", settings)
    os.write(writing, b"first\n\n\xff\xfe bad utf-8\nhalf a l")
    os.write(writing, b"ine\n" + b"x" * 5000 + b"\nno newline at the end")
    os.close(writing)
    await output.ended.wait()
    lines = list(output.lines)
    assert lines[0] == "first"
    assert lines[2] == "half a line"
    assert lines[3].strip("x") == ""
    assert len(lines[3]) == 256
    assert lines[4] == "no newline at the end"
    reading, writing = os.pipe()
    flooded = Output(reading, "test", settings)
    os.write(writing, b"".join(b"line %d\n" % number for number in range(1000)))
    os.close(writing)
    await flooded.ended.wait()
    assert list(flooded.lines) == [f"line {number}" for number in range(990, 1000)]


def test_what_comes_together_is_acted_on_together() -> None:
    inbox: Inbox = queue.SimpleQueue()
    for handle in (1, 2):
        inbox.put((Cancel(handle), []))
    assert list(close_behind(inbox)) == [Cancel(1), Cancel(2)]
    assert list(close_behind(inbox)) == []


def test_a_first_step_does_not_wait_for_ever() -> None:
    inbox: Inbox = queue.SimpleQueue()
    inbox.put((Cancel(1), []))
    taken = 0
    for message in close_behind(inbox):
        taken += 1
        inbox.put((message, []))  # there is always one more
    assert taken >= 1

"""Calls, streams, credit, deadlines and ends, between two nodes in one process over real sockets."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest

from sllmd.core.errors import (
    ChecksumMismatch,
    DeadlineExceeded,
    ModelNotFound,
    NodeDraining,
    PeerRefused,
    PeerUnreachable,
    ProtocolError,
    QueueFull,
    SllmdError,
)
from sllmd.core.ids import NodeId
from sllmd.wire.rpc.connection import Connection
from sllmd.wire.rpc.envelope import HEADER, Kind, frame
from sllmd.wire.rpc.hello import Hello
from sllmd.wire.rpc.listener import Listener
from sllmd.wire.rpc.methods import Caller, Methods
from sllmd.wire.rpc.peers import Address, Peers
from tests.waiting import PATIENCE_SECONDS, eventually
from tests.wire.conftest import CLUSTER, HOST, MakeNode

WINDOW = 4096


class Probe:
    """Handlers that tell what happened to them."""

    def __init__(self) -> None:
        self.methods = Methods()
        self.produced = 0
        self.closed = asyncio.Event()
        self.started = asyncio.Event()
        self.notes: asyncio.Queue[Any] = asyncio.Queue()
        self.release = asyncio.Event()
        self.methods.unary("echo", self._echo)
        self.methods.unary("fail", self._fail)
        self.methods.unary("hang", self._hang)
        self.methods.stream("count", self._count)
        self.methods.stream("forever", self._forever)
        self.methods.stream("idle", self._idle)
        self.methods.stream("break", self._break)
        self.methods.note("note", lambda body, caller: self.notes.put_nowait((body, caller.node)))

    async def _echo(self, body: Any, caller: Caller) -> Any:
        return [caller.node, body]

    async def _fail(self, body: Any, caller: Caller) -> Any:
        raise FAILURES[body]

    async def _hang(self, body: Any, caller: Caller) -> Any:
        self.started.set()
        try:
            await self.release.wait()
        finally:
            self.closed.set()

    async def _count(self, body: Any, caller: Caller) -> AsyncGenerator[Any, None]:
        for number in range(body):
            yield number

    async def _forever(self, body: Any, caller: Caller) -> AsyncGenerator[Any, None]:
        try:
            while True:
                self.produced += 1
                yield "x" * body
        finally:
            self.closed.set()

    async def _idle(self, body: Any, caller: Caller) -> AsyncGenerator[Any, None]:
        yield body
        await self.release.wait()
        yield "end"

    async def _break(self, body: Any, caller: Caller) -> AsyncGenerator[Any, None]:
        yield 1
        raise NodeDraining("going away", retry_after_seconds=2.5)


FAILURES: dict[str, Exception] = {
    "draining": NodeDraining("full up", retry_after_seconds=1.5, hint="wait"),
    "unknown": ModelNotFound("no such model", param="model"),
    "checksum": ChecksumMismatch(file="a", chunk_index=3),
    "crash": ZeroDivisionError("by nought"),
}


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture(params=["tls", "plain"])
async def connected(request, make_node: MakeNode, probe: Probe):
    tls = request.param == "tls"
    server = await make_node("server", probe.methods, tls=tls, stream_window_bytes=WINDOW)
    client = await make_node("client", tls=tls, stream_window_bytes=WINDOW)
    connection = await client.dial(server)
    yield connection
    await connection.close()


async def settled(read) -> Any:
    """The value of ``read`` once it stays the same for many turns of the loop."""
    last, same = read(), 0
    while same < 200:
        await asyncio.sleep(0.0002)
        same = same + 1 if read() == last else 0
        last = read()
    return last


# --- unary ---


async def test_a_call_is_answered(connected: Connection):
    assert connected.peer.node == "server"
    assert connected.peer.facts == {"bulk": 7}
    assert await connected.call("echo", {"a": [1, b"2", None]}) == ("client", {"a": (1, b"2", None)})


async def test_many_calls_at_once_get_their_own_answers(connected: Connection):
    answers = await asyncio.gather(*(connected.call("echo", number) for number in range(500)))
    assert answers == [("client", number) for number in range(500)]
    assert connected.calls == 0


async def test_a_large_body_goes_both_ways(connected: Connection):
    body = bytes(range(256)) * 12_000
    assert (await connected.call("echo", body))[1] == body


@pytest.mark.parametrize("name", ["draining", "unknown", "checksum"])
async def test_errors_come_out_as_they_went_in(connected: Connection, name: str):
    sent = FAILURES[name]
    with pytest.raises(SllmdError) as caught:
        await connected.call("fail", name)
    assert type(caught.value) is type(sent)
    assert vars(caught.value) == vars(sent)
    assert str(caught.value) == str(sent)


async def test_a_crash_is_told(connected: Connection):
    """And not of what: that may be nobody else's to know."""
    with pytest.raises(SllmdError, match="`fail` crashed") as caught:
        await connected.call("fail", "crash")
    assert "nought" not in f"{caught.value} {caught.value.hint}"
    assert (await connected.call("echo", 1))[1] == 1


async def test_an_unknown_method(connected: Connection):
    with pytest.raises(PeerRefused, match="knows no method `nothing`"):
        await connected.call("nothing")
    stream = connected.stream("echo")
    with pytest.raises(PeerRefused, match="knows no method `echo`"):
        await anext(stream)


async def test_a_deadline_ends_both_sides(connected: Connection, probe: Probe):
    with pytest.raises(DeadlineExceeded, match="hang"):
        await connected.call("hang", deadline_seconds=0.2)
    assert connected.calls == 0
    assert (await connected.call("echo", 1))[1] == 1  # so all that was said before has arrived
    await eventually(lambda: probe.closed.is_set() == probe.started.is_set(), "nothing goes on there")


async def test_a_caller_that_leaves_cancels_the_handler(connected: Connection, probe: Probe):
    task = asyncio.create_task(connected.call("hang"))
    await asyncio.wait_for(probe.started.wait(), PATIENCE_SECONDS)
    task.cancel()
    await asyncio.wait_for(probe.closed.wait(), PATIENCE_SECONDS)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_calls_are_bounded(make_node: MakeNode, probe: Probe):
    server = await make_node("server", probe.methods, calls_max=2)
    client = await make_node("client")
    connection = await client.dial(server)
    hanging = [asyncio.create_task(connection.call("hang")) for _ in range(2)]
    await asyncio.wait_for(probe.started.wait(), PATIENCE_SECONDS)
    with pytest.raises(QueueFull) as caught:
        await connection.call("hang")
    assert caught.value.retry_after_seconds == 1.0
    probe.release.set()
    await asyncio.gather(*hanging)
    await connection.close()


async def test_either_side_may_call(make_node: MakeNode, probe: Probe):
    methods = Methods()

    async def back(body: Any, caller: Caller) -> Any:
        return await caller.connection.call("echo", body)

    methods.unary("back", back)
    server = await make_node("server", methods)
    client = await make_node("client", probe.methods)
    connection = await client.dial(server)
    assert await connection.call("back", 5) == ("server", 5)
    await connection.close()


async def test_a_note_needs_no_answer(connected: Connection, probe: Probe):
    assert connected.note("note", [1, 2])
    assert connected.note("nobody knows it", None)
    assert await asyncio.wait_for(probe.notes.get(), PATIENCE_SECONDS) == ((1, 2), "client")


async def test_what_is_too_large_fails_alone(connected: Connection):
    with pytest.raises(ProtocolError, match="over the limit"):
        await connected.call("echo", bytes(9_000_000))
    assert connected.calls == 0
    assert (await connected.call("echo", 1))[1] == 1


# --- streams ---


async def test_a_stream_in_order_to_its_end(connected: Connection):
    async with connected.stream("count", 5000) as stream:
        assert [item async for item in stream] == list(range(5000))
    assert connected.calls == 0


async def test_what_is_there_comes_in_one_piece(connected: Connection):
    async with connected.stream("count", 50) as stream:
        items: list[Any] = []
        rounds = 0
        while batch := await stream.batch():
            items += batch
            rounds += 1
    assert items == list(range(50))
    assert rounds < 10


async def test_an_error_after_items(connected: Connection):
    stream = connected.stream("break")
    assert await anext(stream) == 1
    with pytest.raises(NodeDraining) as caught:
        await anext(stream)
    assert caught.value.retry_after_seconds == 2.5


async def test_leaving_a_stream_closes_its_source(connected: Connection, probe: Probe):
    async with connected.stream("forever", 10) as stream:
        await anext(stream)
    await asyncio.wait_for(probe.closed.wait(), PATIENCE_SECONDS)
    assert (await connected.call("echo", 1))[1] == 1


async def test_a_slow_reader_holds_its_source_and_nobody_else(connected: Connection, probe: Probe):
    async with connected.stream("forever", 100) as slow:
        produced = await settled(lambda: probe.produced)
        assert produced < 2 * WINDOW / 100
        assert slow.unread_bytes <= WINDOW + 1000
        async with connected.stream("count", 20_000) as quick:
            assert [item async for item in quick] == list(range(20_000))
        assert probe.produced == produced
        for _ in range(produced):
            await anext(slow)
        assert await settled(lambda: probe.produced) > produced


async def test_a_large_item_passes_a_small_window(connected: Connection, probe: Probe):
    async with connected.stream("forever", 500_000) as stream:
        for _ in range(5):
            assert len(await anext(stream)) == 500_000


async def test_an_item_over_the_limit_fails_its_stream(connected: Connection):
    stream = connected.stream("forever", 2_000_000)
    with pytest.raises(ProtocolError, match="over the limit"):
        await anext(stream)
    assert (await connected.call("echo", 1))[1] == 1


async def test_a_stream_has_a_deadline_if_it_wants(connected: Connection):
    stream = connected.stream("idle", 1, deadline_seconds=0.2)
    with suppress(DeadlineExceeded):  # on a busy machine
        assert await anext(stream) == 1
    with pytest.raises(DeadlineExceeded):
        await anext(stream)


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


async def test_a_thousand_idle_streams_are_cheap(connected: Connection, probe: Probe):
    gc.collect()
    before = resident_bytes()
    streams = [connected.stream("idle", number) for number in range(1000)]
    assert [await anext(stream) for stream in streams] == list(range(1000))
    assert resident_bytes() - before < 40_000_000
    probe.release.set()
    assert [await anext(stream) for stream in streams] == ["end"] * 1000
    assert [[item async for item in stream] for stream in streams] == [[]] * 1000
    assert connected.calls == 0


async def test_a_thousand_slow_readers_hold_a_window_each(connected: Connection, probe: Probe):
    before = resident_bytes()
    streams = [connected.stream("forever", 100) for _ in range(1000)]
    await settled(lambda: probe.produced)
    assert all(stream.unread_bytes <= WINDOW + 1000 for stream in streams)
    assert resident_bytes() - before < 100_000_000
    for stream in streams:
        await stream.aclose()


async def test_what_is_ready_in_one_turn_shares_a_frame(make_node: MakeNode):
    """A step of sixteen generations is one frame on the wire."""
    methods, step = Methods(), asyncio.Event()

    async def steps(body: Any, caller: Caller) -> AsyncGenerator[Any, None]:
        await step.wait()
        yield body
        await asyncio.Event().wait()

    methods.stream("steps", steps)
    server = await make_node("server", methods, tls=False)
    reader, writer = await asyncio.open_connection(HOST, server.port)
    writer.write(raw(Kind.HELLO, Hello(CLUSTER, NodeId("client")).to_wire()) + raw(Kind.WELCOME, None))
    writer.write(b"".join(raw(Kind.CALL, (n, "steps", n, None, 1000)) for n in range(16)))
    await eventually(lambda: sum(each.calls for each in server.listener.connections) == 16)
    step.set()
    kinds = []
    while not kinds or kinds[-1] != Kind.ITEMS:
        length, _version, kind = HEADER.unpack(
            await asyncio.wait_for(reader.readexactly(HEADER.size), PATIENCE_SECONDS)
        )
        message = msgpack.unpackb(await reader.readexactly(length))
        kinds.append(kind)
    writer.close()
    assert kinds == [Kind.HELLO, Kind.WELCOME, Kind.ITEMS]
    assert message == [part for n in range(16) for part in (n, msgpack.packb(n))]


def raw(kind: Kind, message: Any) -> bytes:
    return frame(kind, message, version=1, frame_bytes_max=1 << 20)


# --- ends ---


async def test_a_closed_connection_tells_everybody(connected: Connection, probe: Probe):
    call = asyncio.create_task(connected.call("hang"))
    stream = connected.stream("idle", 1)
    assert await anext(stream) == 1
    await asyncio.wait_for(probe.started.wait(), PATIENCE_SECONDS)
    await connected.close()
    with pytest.raises(PeerUnreachable):
        await call
    with pytest.raises(PeerUnreachable):
        await anext(stream)
    with pytest.raises(PeerUnreachable):
        await connected.call("echo")
    assert not connected.note("note", 1)
    await asyncio.wait_for(probe.closed.wait(), PATIENCE_SECONDS)


async def test_a_listener_that_stops_says_so(make_node: MakeNode, probe: Probe):
    server = await make_node("server", probe.methods)
    client = await make_node("client")
    connection = await client.dial(server)
    call = asyncio.create_task(connection.call("hang"))
    await asyncio.wait_for(probe.started.wait(), PATIENCE_SECONDS)
    await server.listener.close()
    with pytest.raises(PeerUnreachable, match="it is stopping") as caught:
        await call
    assert caught.value.in_doubt
    assert probe.closed.is_set()


async def test_the_pool_dials_once_and_again_after_a_loss(make_node: MakeNode, probe: Probe):
    server = await make_node("server", probe.methods)
    client = await make_node("client", redial_seconds=0.01)
    peers, address = Peers(client.local), Address(HOST, server.port)
    node = NodeId("server")
    found = await asyncio.gather(*(peers.connection(node, address) for _ in range(20)))
    assert len(set(found)) == 1
    assert len(server.listener.connections) == 1
    await found[0].close()
    assert peers.connected(node, address) is None
    again = await peers.connection(node, address)
    assert (await again.call("echo", 1))[1] == 1
    peers.forget(node)
    await asyncio.wait_for(again.gone(), PATIENCE_SECONDS)
    await peers.close()


async def test_who_asks_for_a_node_that_is_forgotten_meanwhile_is_told_so(make_node: MakeNode):
    """And is not cancelled: tasks that run for ever ask, too."""
    client = await make_node("client")
    with socket.create_server((HOST, 0)) as silent:  # it takes the connection and says nothing
        peers, node = Peers(client.local), NodeId("server")
        asking = asyncio.create_task(peers.connection(node, Address(HOST, silent.getsockname()[1])))
        accepted, _ = await asyncio.to_thread(silent.accept)
        with accepted:
            peers.forget(node)
            with pytest.raises(PeerUnreachable, match="given up"):
                await asking
            await peers.close()


async def test_the_pool_forgets_where_a_node_was(make_node: MakeNode):
    client, server = await make_node("client"), await make_node("server")
    peers, node = Peers(client.local), NodeId("server")
    for _ in range(3):  # it restarts, on another port each time
        moved = Listener(server.local)
        address = Address(HOST, await moved.start(HOST, 0))
        connection = await peers.connection(node, address)
        await moved.close()
        await connection.gone()
    assert list(peers._peers) == [(node, address)]
    await peers.close()


@pytest.mark.slow
async def test_the_pool_does_not_hammer_a_dead_node(make_node: MakeNode, probe: Probe):
    server = await make_node("server", probe.methods)
    client = await make_node("client", redial_seconds=2, redial_max_seconds=2)
    await server.listener.close()
    peers, address = Peers(client.local), Address(HOST, server.port)
    with pytest.raises(PeerUnreachable, match="cannot be reached"):
        await peers.connection(NodeId("server"), address)
    back = Listener(server.local)
    await back.start(HOST, server.port)
    with pytest.raises(PeerUnreachable, match="cannot be reached"):
        await peers.connection(NodeId("server"), address)  # it was not dialled: it would have answered
    async with asyncio.timeout(PATIENCE_SECONDS):
        while peers.connected(NodeId("server"), address) is None:
            with suppress(PeerUnreachable):
                await peers.connection(NodeId("server"), address)
            await asyncio.sleep(0.01)
    await peers.close()
    await back.close()

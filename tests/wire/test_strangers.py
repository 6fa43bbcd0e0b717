"""Who is let in: identities, clusters, versions, join tokens; and what garbage does to a port."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest

from sllmd.core.errors import (
    ConfigError,
    DeadlineExceeded,
    PeerRefused,
    PeerUnreachable,
    ProtocolError,
    SllmdError,
)
from sllmd.core.ids import NodeId
from sllmd.wire.identity import make_identity, make_request, new_authority, new_key, save_identity
from sllmd.wire.rpc.connection import Connection
from sllmd.wire.rpc.dialing import dial_with
from sllmd.wire.rpc.envelope import HEADER, Kind
from sllmd.wire.rpc.hello import Hello
from sllmd.wire.rpc.joining import ask_to_join, fetch_authority, offer_authority
from sllmd.wire.rpc.listener import Listener
from sllmd.wire.rpc.methods import Caller, Methods
from sllmd.wire.rpc.outgoing import ReplyStream
from sllmd.wire.rpc.settings import RpcSettings
from sllmd.wire.tls import anonymous_client
from sllmd.wire.token import TokenRecord, check_token, make_token, record_of
from tests.waiting import PATIENCE_SECONDS, eventually
from tests.wire.conftest import CLUSTER, HOST, MakeNode, Node, identity_file

SETTINGS = RpcSettings()


def echo_methods() -> Methods:
    methods = Methods()

    async def echo(body: Any, caller: Caller) -> Any:
        return body

    methods.unary("echo", echo)
    return methods


# --- identities ---


@pytest.mark.parametrize("tls", [True, False])
async def test_who_is_in_the_middle_of_a_handshake_hears_that_the_listener_closes(
    make_node: MakeNode, tls: bool
):
    server = await make_node("server", tls=tls, hello_timeout_seconds=600)
    reader, writer = await asyncio.open_connection(HOST, server.port)
    await eventually(lambda: server.listener.strangers == 1)
    await server.listener.close()
    with suppress(ConnectionError):  # a reset says so, too
        async with asyncio.timeout(PATIENCE_SECONDS):
            await reader.read()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


async def test_members_know_each_other_by_certificate(make_node: MakeNode):
    server, client = await make_node("server", echo_methods()), await make_node("client")
    connection = await client.dial(server, expected=NodeId("server"))
    assert await connection.call("echo", 1) == 1
    (accepted,) = server.listener.connections
    assert accepted.peer.node == "client"
    await connection.close()


async def test_a_refusal_is_news_once_for_each_host(make_node: MakeNode):
    local = (await make_node("server")).local
    asked = ["10.0.0.1:40000", "10.0.0.1:40001", "10.0.0.2:40000", "10.0.0.2:40001"]
    assert [local.news(address, "too slow") for address in asked] == [True, False, True, False]
    assert local.news(asked[0], "of another cluster")


async def test_another_node_than_expected(make_node: MakeNode):
    server, client = await make_node("server"), await make_node("client")
    with pytest.raises(PeerRefused, match="node server answered instead of node other"):
        await client.dial(server, expected=NodeId("other"))


async def refused_both_ways(client, server, client_hears: str) -> None:
    with pytest.raises((PeerRefused, PeerUnreachable), match=client_hears):
        await client.dial(server)
    assert server.listener.connections == frozenset()


async def test_a_node_of_another_cluster(make_node: MakeNode, tmp_path: Path):
    other = new_authority("other", now_seconds=time.time())
    server = await make_node("server")
    client = await make_node("client", tls=identity_file(tmp_path, other, "client"))
    await refused_both_ways(client, server, "certificate is not accepted")


async def test_a_certificate_of_another_cluster_is_refused_by_the_server(make_node: MakeNode, tmp_path: Path):
    """A client that trusts our CA but was signed by somebody else."""
    other = new_authority("other", now_seconds=time.time())
    server = await make_node("server")
    key = new_key()
    node = NodeId("client")
    signed = other.sign(make_request(node, key), node, now_seconds=time.time())
    path = save_identity(tmp_path, make_identity(key, signed, other.certificate_pem))
    client = await make_node("client", tls=path)
    assert client.local.tls is not None
    client.local.tls.client.load_verify_locations(tmp_path / "server" / "node.pem")
    await refused_both_ways(client, server, "it may not accept our certificate")


@pytest.mark.parametrize("expired", ["client", "server"])
async def test_an_expired_certificate(make_node: MakeNode, authority, tmp_path: Path, expired: str):
    long_ago = time.time() - 400 * 86400
    paths = {
        name: identity_file(tmp_path, authority, name, now_seconds=long_ago if name == expired else None)
        for name in ("client", "server")
    }
    server = await make_node("server", tls=paths["server"])
    client = await make_node("client", tls=paths["client"])
    await refused_both_ways(client, server, "expired")


async def test_a_removed_node(make_node: MakeNode):
    def admission(node: NodeId, fingerprint: str) -> str | None:
        assert len(fingerprint) == 64
        return "it was removed from the cluster" if node == "client" else None

    server = await make_node("server", admission=admission)
    client = await make_node("client")
    await refused_both_ways(client, server, "node client is not let in: it was removed")


async def test_a_client_checks_admission_too(make_node: MakeNode):
    server = await make_node("server")
    client = await make_node("client", admission=lambda node, _: "gone" if node == "server" else None)
    await refused_both_ways(client, server, "node server is not let in: gone")


async def test_a_clone_of_a_data_directory(make_node: MakeNode):
    first, second = await make_node("node"), await make_node("node")
    await refused_both_ways(second, first, "copy of its data directory")


async def test_a_name_that_the_certificate_does_not_bear(make_node: MakeNode, authority, tmp_path: Path):
    server = await make_node("server")
    client = await make_node("client", tls=identity_file(tmp_path, authority, "someone"))
    await refused_both_ways(client, server, "node client shows the certificate of someone")


# --- clusters and versions ---


@pytest.mark.parametrize("tls", [True, False])
async def test_another_cluster_id(make_node: MakeNode, tls: bool):
    server = await make_node("server", tls=tls)
    client = await make_node("client", tls=tls, cluster="cluster-2")
    await refused_both_ways(client, server, "of cluster cluster-")


@pytest.mark.parametrize(
    ("theirs", "ours", "reason"),
    [((1, 2), (3, 4), "too old"), ((5, 6), (3, 4), "too old")],
)
async def test_versions_without_overlap(make_node: MakeNode, theirs, ours, reason):
    server = await make_node("server", tls=False, versions=theirs)
    client = await make_node("client", tls=False, versions=ours)
    with pytest.raises(PeerRefused, match="speaks protocol versions") as caught:
        await client.dial(server)
    assert reason in str(caught.value)
    assert server.listener.connections == frozenset()


@pytest.mark.parametrize(("theirs", "ours"), [((1, 3), (2, 5)), ((2, 2), (1, 9)), ((3, 9), (1, 3))])
async def test_versions_with_overlap(make_node: MakeNode, theirs, ours):
    server = await make_node("server", echo_methods(), tls=False, versions=theirs)
    client = await make_node("client", tls=False, versions=ours)
    connection = await client.dial(server)
    assert await connection.call("echo", 1) == 1
    await connection.close()


# --- joining ---


class Door:
    """The cluster's side of a join, as the member room will have it."""

    def __init__(self, authority) -> None:
        self.methods = echo_methods()
        self.records: dict[str, TokenRecord] = {}
        self.heard: list[Any] = []
        self.authority = authority
        offer_authority(self.methods, authority.certificate_pem)
        self.methods.unary("join", self._join, strangers=True)

    def token(self, pin: str, *, lifetime_seconds: float = 60.0):
        token = make_token(bytes(range(21)), pin)
        self.records[token.token_id] = record_of(
            token, now_seconds=time.time(), lifetime_seconds=lifetime_seconds
        )
        return token

    async def _join(self, body: Any, caller: Caller) -> Any:
        self.heard.append(body)
        record = self.records.get(body["token_id"])
        check_token(record, body["secret"], time.time())
        node = NodeId(body["node"])
        return self.authority.sign(body["request"], node, now_seconds=time.time())


async def test_a_stranger_joins(make_node: MakeNode, authority, tmp_path: Path):
    door = Door(authority)
    server = await make_node("server", door.methods)
    key, node = new_key(), NodeId("newcomer")
    request = {"node": node, "request": make_request(node, key)}
    token = door.token(authority.pin)
    signed = await ask_to_join(HOST, server.port, token, request, SETTINGS)
    ca_pem, _ = await fetch_authority(HOST, server.port, token, SETTINGS)
    path = save_identity(tmp_path / "newcomer", make_identity(key, signed, ca_pem))
    newcomer = await make_node("newcomer", tls=path)
    connection = await newcomer.dial(server)
    assert await connection.call("echo", 1) == 1
    await connection.close()


async def test_a_wrong_secret(make_node: MakeNode, authority):
    door = Door(authority)
    server = await make_node("server", door.methods)
    door.token(authority.pin)
    wrong = make_token(bytes(range(5)) + bytes(16), authority.pin)
    with pytest.raises(PeerRefused, match="not known here"):
        await ask_to_join(HOST, server.port, wrong, {"node": "n", "request": ""}, SETTINGS)


async def test_an_expired_token(make_node: MakeNode, authority):
    door = Door(authority)
    server = await make_node("server", door.methods)
    token = door.token(authority.pin, lifetime_seconds=-1.0)
    with pytest.raises(PeerRefused, match="has expired"):
        await ask_to_join(HOST, server.port, token, {"node": "n", "request": ""}, SETTINGS)


async def test_a_cluster_that_is_not_the_tokens_never_hears_the_secret(make_node: MakeNode, authority):
    door = Door(authority)
    server = await make_node("server", door.methods)
    token = door.token("ab" * 32)
    with pytest.raises(PeerRefused, match="not the one the join token was made for"):
        await ask_to_join(HOST, server.port, token, {"node": "n", "request": ""}, SETTINGS)
    assert door.heard == []


async def test_an_impostor_that_shows_the_right_ca_never_hears_the_secret(
    make_node: MakeNode, authority, tmp_path
):
    """The CA's certificate is public: showing it proves nothing without a key that it signed for."""
    door = Door(authority)
    impostor = new_authority("impostor", now_seconds=time.time())
    server = await make_node("server", door.methods, tls=identity_file(tmp_path, impostor, "server"))
    token = door.token(authority.pin)
    with pytest.raises(PeerRefused, match="certificate is not accepted"):
        await ask_to_join(HOST, server.port, token, {"node": "n", "request": ""}, SETTINGS)
    assert door.heard == []


async def test_a_stranger_may_call_nothing_else(make_node: MakeNode, authority):
    server = await make_node("server", Door(authority).methods)
    stranger = await make_node("", tls=False, cluster="")
    context = anonymous_client(authority.certificate_pem)
    connection = await dial_with(stranger.local, HOST, server.port, context)
    with pytest.raises(PeerRefused, match="for members of the cluster"):
        await connection.call("echo", 1)
    await connection.close()


async def test_a_stranger_with_a_members_name(make_node: MakeNode, authority):
    server = await make_node("server", Door(authority).methods)
    stranger = await make_node("member", tls=False)
    context = anonymous_client(authority.certificate_pem)
    with pytest.raises(PeerRefused, match="shows the certificate of nobody"):
        await dial_with(stranger.local, HOST, server.port, context)


async def test_on_loopback_one_joins_without_a_token(make_node: MakeNode):
    methods = Methods()

    async def join(body: Any, caller: Caller) -> Any:
        return body

    methods.unary("join", join, strangers=True)
    server = await make_node("server", methods, tls=False)
    assert await ask_to_join(HOST, server.port, None, {"node": "n"}, SETTINGS) == {"node": "n"}


# --- mixed and missing encryption ---


async def test_plain_to_a_tls_port(make_node: MakeNode):
    server = await make_node("server")
    client = await make_node("client", tls=False, connect_timeout_seconds=1)
    with pytest.raises(SllmdError):
        await client.dial(server)


async def test_tls_to_a_plain_port(make_node: MakeNode):
    server = await make_node("server", tls=False)
    client = await make_node("client")
    with pytest.raises((PeerRefused, PeerUnreachable)):
        await client.dial(server)


async def test_old_tls_is_refused(make_node: MakeNode):
    server = await make_node("server")
    context = anonymous_client(None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.open_connection(HOST, server.port, ssl=context)


async def test_nobody_listens(make_node: MakeNode):
    client, gone = await make_node("client"), await make_node("gone")
    await gone.listener.close()
    with pytest.raises(PeerUnreachable, match="cannot be reached"):
        await client.dial(gone)


async def test_a_port_in_use(make_node: MakeNode):
    server = await make_node("server")
    with pytest.raises(ConfigError, match="cannot listen"):
        await Listener(server.local).start(HOST, server.port)


async def test_a_server_that_says_nothing(make_node: MakeNode):
    client = await make_node("client", tls=False, connect_timeout_seconds=0.1)
    silent = socket.create_server((HOST, 0))
    client_view = await make_node("view", tls=False)
    client_view.port = silent.getsockname()[1]
    with pytest.raises(DeadlineExceeded, match="does not answer"):
        await client.dial(client_view)
    silent.close()


# --- garbage ---


async def collect(stream: ReplyStream) -> list[Any]:
    return [item async for item in stream]


def wire(kind: int, message: Any, version: int = 1) -> bytes:
    payload = msgpack.packb(message)
    return HEADER.pack(len(payload), version, kind) + payload


HELLO = wire(Kind.HELLO, Hello(CLUSTER, NodeId("rude")).to_wire()) + wire(Kind.WELCOME, None)

GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "zeroes": bytes(1000),
    "ones": b"\xff" * 1000,
    "oversized": struct.pack("<IBB", 5000, 1, Kind.HELLO),
    "no hello": wire(Kind.CALL, (1, "echo", None, None, 0)),
    "hello of another shape": wire(Kind.HELLO, [1, 2, 3]),
    "hello with versions upside down": wire(
        Kind.HELLO, {"cluster": "", "node": "", "versions": (2, 1), "facts": {}}
    ),
    "half a value": HEADER.pack(3, 1, Kind.HELLO) + b"\x93\x01\x02",
    "too deep": HEADER.pack(4000, 1, Kind.HELLO) + b"\x91" * 4000,
    "oversized after hello": HELLO + struct.pack("<IBB", 1 << 31, 1, Kind.CALL),
    "unknown kind": HELLO + wire(99, None),
    "hello again": HELLO + HELLO,
    "another version": HELLO + wire(Kind.PING, None, version=7),
    "call of another shape": HELLO + wire(Kind.CALL, {"call": 1}),
    "call without a name": HELLO + wire(Kind.CALL, (1, 2, 3, 4, 5)),
    "same call twice": HELLO + 2 * wire(Kind.CALL, (1, "hang", None, None, 0)),
    "negative credit": HELLO + wire(Kind.CREDIT, (1, -5)),
    "items of odd count": HELLO + wire(Kind.ITEMS, (1, b"", 2)),
    "result of another shape": HELLO + wire(Kind.RESULT, 5),
    "fault of another shape": HELLO + wire(Kind.FAULT, (1, (2, 3))),
    "cancel of another shape": HELLO + wire(Kind.CANCEL, "x"),
    "note of another shape": HELLO + wire(Kind.NOTE, (1, 2)),
    "end of another shape": HELLO + wire(Kind.END, ()),
    "goodbye of another shape": HELLO + wire(Kind.GOODBYE, 1),
}


async def let_in(client: Node, server: Node) -> Connection:
    """A connection, however often a busy machine takes longer than a short time-out allows."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with suppress(SllmdError):
                return await client.dial(server)


async def hung_up(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        try:
            while await reader.read(4096):
                pass
        except ConnectionError:
            pass


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_is_hung_up_on_and_nobody_else_notices(make_node: MakeNode, name: str):
    methods = echo_methods()

    async def hang(body: Any, caller: Caller) -> Any:
        await asyncio.Event().wait()

    methods.unary("hang", hang)
    server = await make_node("server", methods, tls=False)
    client = await make_node("client", tls=False)
    connection = await client.dial(server)
    reader, writer = await asyncio.open_connection(HOST, server.port)
    writer.write(GARBAGE[name])
    await hung_up(reader)
    writer.close()
    assert await connection.call("echo", name) == name
    assert len(server.listener.connections) == 1
    await connection.close()


@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100_000])
async def test_garbage_on_a_tls_port(make_node: MakeNode, data: bytes):
    server = await make_node("server", echo_methods(), hello_timeout_seconds=0.3)
    client = await make_node("client")
    reader, writer = await asyncio.open_connection(HOST, server.port)
    writer.write(data)
    await hung_up(reader)
    writer.close()
    connection = await let_in(client, server)
    assert await connection.call("echo", 1) == 1
    await connection.close()


async def test_strangers_have_few_places(make_node: MakeNode):
    server = await make_node("server", echo_methods(), hello_timeout_seconds=60, strangers_max=4)
    client = await make_node("client")
    silent = [await asyncio.open_connection(HOST, server.port) for _ in range(4)]
    await eventually(lambda: server.listener.strangers == 4)
    with pytest.raises(SllmdError):
        await client.dial(server)  # no place for one more stranger
    for _, writer in silent:
        writer.close()
    await eventually(lambda: server.listener.strangers == 0)
    connection = await client.dial(server)
    assert await connection.call("echo", 1) == 1
    await connection.close()


@pytest.mark.parametrize("tls", [True, False])
async def test_slow_strangers_are_hung_up_on(make_node: MakeNode, tls: bool):
    """One byte at a time, for ever: each holds its place for a short while."""
    server = await make_node("server", echo_methods(), tls=tls, hello_timeout_seconds=0.3, strangers_max=4)
    client = await make_node("client", tls=tls)
    slow = [await asyncio.open_connection(HOST, server.port) for _ in range(4)]

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = HELLO if not tls else b"\x16\x03\x01\x02\x00" + bytes(500)
        for byte in data:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.02)
            if reader.at_eof():
                break

    drips = [asyncio.create_task(drip(*each)) for each in slow]
    await asyncio.gather(*(hung_up(reader) for reader, _ in slow))
    connection = await let_in(client, server)
    assert await connection.call("echo", 1) == 1
    await connection.close()
    for task in drips:
        task.cancel()
    for _, writer in slow:
        writer.close()


async def test_half_a_frame_costs_what_arrived(make_node: MakeNode):
    """A member that announces 8 MB and sends one holds one, and the connection goes on when it goes on."""
    server = await make_node("server", echo_methods(), tls=False)
    reader, writer = await asyncio.open_connection(HOST, server.port)
    body = wire(Kind.CALL, (1, "echo", bytes(1_000_000), None, 0))
    writer.write(HELLO + body[:-1])
    await writer.drain()
    await eventually(lambda: bool(server.listener.connections))
    writer.write(body[-1:] + wire(Kind.PING, None))
    await asyncio.wait_for(reader.readexactly(1_000_000), PATIENCE_SECONDS)
    writer.close()


async def test_a_peer_that_reads_nothing_is_hung_up_on(make_node: MakeNode):
    """Answers wait for a slow socket, but pongs and refusals do not: what they pile up is bounded."""
    server = await make_node(
        "server",
        echo_methods(),
        tls=False,
        item_bytes_max=65536,
        frame_bytes_max=131072,
        output_wait_bytes=65536,
        output_bytes_max=262144,
    )
    flood = socket.create_connection((HOST, server.port))
    flood.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    flood.setblocking(False)
    loop = asyncio.get_running_loop()
    calls = b"".join(wire(Kind.CALL, (number, "nothing", None, None, 0)) for number in range(1000))

    async def call_for_ever() -> None:
        await loop.sock_sendall(flood, HELLO)
        while True:
            await loop.sock_sendall(flood, calls)

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(call_for_ever(), PATIENCE_SECONDS)
    flood.close()
    await eventually(lambda: not server.listener.connections)


async def test_a_silent_peer_is_given_up(make_node: MakeNode):
    server = await make_node("server", tls=False, keepalive_seconds=0.05, dead_after_seconds=0.2)
    reader, writer = await asyncio.open_connection(HOST, server.port)
    writer.write(HELLO)
    began = time.monotonic()
    await hung_up(reader)
    assert time.monotonic() - began >= 0.15
    writer.close()


async def test_a_quiet_peer_that_answers_pings_is_kept(make_node: MakeNode):
    quick = {"keepalive_seconds": 0.05, "dead_after_seconds": 5}
    server = await make_node("server", echo_methods(), tls=False, **quick)
    client = await make_node("client", tls=False)
    connection = await client.dial(server)
    await eventually(lambda: server.listener.connections)
    (accepted,) = server.listener.connections
    for _ in range(3):
        heard_at = accepted._heard_at
        await eventually(lambda heard_at=heard_at: accepted._heard_at > heard_at, "a ping is answered")
    assert await connection.call("echo", 1) == 1
    await connection.close()


async def test_a_source_that_ignores_credit_is_hung_up_on(make_node: MakeNode):
    client = await make_node("client", tls=False, stream_window_bytes=1000, item_bytes_max=1000)

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await reader.readuntil(b"anything")
        writer.write(wire(Kind.ITEMS, [1, msgpack.packb(bytes(900))] * 10))
        await hung_up(reader)
        writer.close()

    server = await asyncio.start_server(flood, HOST, 0)
    view = await make_node("view", tls=False)
    view.port = server.sockets[0].getsockname()[1]
    connection = await client.dial(view)
    stream = connection.stream("anything")
    with pytest.raises(ProtocolError, match="came unasked"):
        await collect(stream)
    await asyncio.wait_for(connection.gone(), PATIENCE_SECONDS)
    server.close()

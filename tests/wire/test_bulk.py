"""Chunks between two nodes over real sockets: whole, tagged, refused, tampered with, cut off."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sllmd.core.errors import PeerRefused, PeerUnreachable, ProtocolError, SllmdError, SourceUnavailable
from sllmd.core.ids import NodeId
from sllmd.wire.bulk.client import BulkAddress, BulkClient
from sllmd.wire.bulk.messages import TAG_BYTES
from sllmd.wire.bulk.pipe import PIECE_BYTES, Piece, Span
from sllmd.wire.bulk.server import BulkServer
from sllmd.wire.bulk.settings import BulkSettings
from sllmd.wire.identity import new_authority
from sllmd.wire.rpc.envelope import HEADER
from sllmd.wire.tls import Tls, admit_all
from tests.waiting import until
from tests.wire.conftest import HOST, identity_file

CONTENT = os.urandom(3 * PIECE_BYTES + 12345)
MODES = ["tls", "ticket", "plain"]


class Held:
    """Files of a directory, by name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptors: dict[str, int] = {}

    def pieces(self, path: str, offset_bytes: int, size_bytes: int) -> Sequence[Piece]:
        if path not in self._descriptors:
            self._descriptors[path] = os.open(self._directory / path, os.O_RDONLY)
        memory = memoryview(CONTENT)[offset_bytes : offset_bytes + size_bytes // 4]
        rest = size_bytes - len(memory)
        half = rest // 2
        descriptor, at = self._descriptors[path], offset_bytes + len(memory)
        return [memory, Span(descriptor, at, half), Span(descriptor, at + half, rest - half)]

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


class Rig:
    def __init__(self, tmp_path: Path, authority) -> None:
        self.directory = tmp_path / "checkpoint"
        self.directory.mkdir()
        (self.directory / "weights").write_bytes(CONTENT)
        self.tmp_path = tmp_path
        self.authority = authority
        self.open_holdings = 0
        self._ends: list[Callable[[], None]] = []

    def tls(self, node: str) -> Tls:
        return Tls(identity_file(self.tmp_path, self.authority, node))

    def provide(self, checkpoint: str) -> Held:
        if checkpoint != "digest":
            raise SourceUnavailable(f"{checkpoint} is not here", hint="ask somebody else")
        self.open_holdings += 1
        held, rig = Held(self.directory), self

        class Counted:
            pieces = held.pieces

            def close(self) -> None:
                held.close()
                rig.open_holdings -= 1

        return Counted()  # type: ignore[return-value]

    def server(
        self, mode: str = "tls", *, tls: Tls | None = None, admission=admit_all, **settings: Any
    ) -> int:
        encryption = "off" if mode == "ticket" else "on"
        server = BulkServer(
            self.provide,
            BulkSettings.model_validate({"encryption": encryption} | settings),
            None if mode == "plain" else tls or self.tls("source"),
            admission,
        )
        self._ends.append(server.close)
        self.last_server = server
        return server.start(HOST, 0)

    def client(
        self, port: int, mode: str = "tls", *, tls: Tls | None = None, tagged: bool = True, **settings
    ):
        encryption = "off" if mode == "ticket" else "on"
        client = BulkClient(
            BulkAddress(NodeId("source"), HOST, port),
            BulkSettings.model_validate({"encryption": encryption} | settings),
            None if mode == "plain" else tls or self.tls("target"),
            tagged=tagged,
        )
        self._ends.insert(0, client.close)
        return client

    def close(self) -> None:
        for end in self._ends:
            end()


@pytest.fixture
def rig(tmp_path: Path, authority) -> Iterator[Rig]:
    rig = Rig(tmp_path, authority)
    yield rig
    rig.close()
    assert [thread for thread in threading.enumerate() if thread.name == "chunks"] == []
    assert rig.open_holdings == 0


def fetch(client: BulkClient, offset: int = 0, size: int = len(CONTENT), **names: str) -> bytes:
    memory = bytearray(size)
    view = memoryview(memory)
    counted: list[int] = []
    cut = size // 3
    client.fetch(
        names.get("checkpoint", "digest"),
        names.get("path", "weights"),
        offset,
        [view[:cut], view[cut:]],
        counted.append,
    )
    assert sum(counted) == size
    return bytes(memory)


def fetch_at_last(rig: Rig, port: int, mode: str) -> None:
    """However often a busy machine takes longer than a short time-out allows."""

    def fetched() -> bool:
        with suppress(PeerUnreachable):
            return fetch(rig.client(port, mode), 0, 100) == CONTENT[:100]
        return False

    until(fetched, "others are served")


@pytest.mark.parametrize("mode", MODES)
def test_ranges_arrive_whole(rig: Rig, mode: str) -> None:
    client = rig.client(rig.server(mode), mode)
    assert fetch(client) == CONTENT
    assert fetch(client, 1, 1) == CONTENT[1:2]
    assert fetch(client, 777, PIECE_BYTES + 1) == CONTENT[777 : 778 + PIECE_BYTES]


@pytest.mark.parametrize("tagged", [True, False])
def test_with_a_ticket_bytes_leave_tls(rig: Rig, tagged: bool) -> None:
    port = rig.server("ticket")
    client = rig.client(port, "ticket", tagged=tagged)
    with eavesdropper(rig, client) as heard:
        assert fetch(client) == CONTENT
    assert CONTENT[1000:2000] in heard()


@pytest.mark.parametrize("mode", MODES)
def test_several_threads_several_connections(rig: Rig, mode: str) -> None:
    client = rig.client(rig.server(mode), mode)
    results: dict[int, bytes] = {}

    def work(start: int) -> None:
        for _ in range(5):
            results[start] = fetch(client, start, 100_000)

    threads = [threading.Thread(target=work, args=(number * 1000,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {start: CONTENT[start : start + 100_000] for start in range(0, 8000, 1000)}


@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_there_is_told_and_the_connection_lives(rig: Rig, mode: str) -> None:
    client = rig.client(rig.server(mode), mode)
    with pytest.raises(SourceUnavailable, match="other is not here") as caught:
        fetch(client, checkpoint="other")
    assert caught.value.hint == "ask somebody else"
    assert fetch(client, 5, 5) == CONTENT[5:10]


@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_ends_too_early(rig: Rig, mode: str) -> None:
    client = rig.client(rig.server(mode), mode)
    with pytest.raises(PeerUnreachable):
        fetch(client, 0, len(CONTENT) + 1)
    assert fetch(client, 5, 5) == CONTENT[5:10]


def test_a_connection_that_was_closed_meanwhile_is_replaced(rig: Rig) -> None:
    client = rig.client(rig.server("tls", idle_timeout_seconds=1))
    assert fetch(client, 0, 10) == CONTENT[:10]
    until(lambda: not rig.open_holdings, "its time is up")
    assert fetch(client, 10, 10) == CONTENT[10:20]


def test_a_source_that_encrypts_is_not_talked_out_of_it(rig: Rig) -> None:
    client = rig.client(rig.server("tls"), "ticket")
    assert fetch(client) == CONTENT


# --- who is let in ---


def test_another_clusters_node(rig: Rig, tmp_path: Path) -> None:
    other = new_authority("other", now_seconds=time.time())
    client = rig.client(rig.server(), tls=Tls(identity_file(tmp_path / "other", other, "target")))
    with pytest.raises(PeerRefused, match="certificate is not accepted"):
        fetch(client)


def test_an_expired_certificate(rig: Rig, tmp_path: Path) -> None:
    old = identity_file(tmp_path / "old", rig.authority, "target", now_seconds=time.time() - 400 * 86400)
    client = rig.client(rig.server(), tls=Tls(old))
    with pytest.raises((PeerRefused, PeerUnreachable)):
        fetch(client)


def test_another_node_than_expected(rig: Rig) -> None:
    client = rig.client(rig.server(tls=rig.tls("someone")))
    with pytest.raises(PeerRefused, match="node someone answered instead of node source"):
        fetch(client)


@pytest.mark.parametrize("mode", ["tls", "ticket"])
def test_a_removed_node(rig: Rig, mode: str) -> None:
    client = rig.client(rig.server(mode, admission=lambda _node, _fingerprint: "it was removed"), mode)
    with pytest.raises((PeerRefused, PeerUnreachable)):
        fetch(client)


def test_a_node_that_is_removed_while_it_holds_a_ticket(rig: Rig) -> None:
    removed: list[str] = []
    port = rig.server("ticket", admission=lambda *_: removed[0] if removed else None)
    client = rig.client(port, "ticket")
    assert fetch(client, 0, 5) == CONTENT[:5]
    client._idle.pop()[0].close()
    removed.append("it was removed")
    with pytest.raises(PeerRefused, match="it was removed"):
        fetch(client)


@pytest.mark.parametrize("mode", ["tls", "ticket"])
def test_what_a_removed_node_has_open_ends(rig: Rig, mode: str) -> None:
    removed: list[str] = []
    port = rig.server(mode, admission=lambda node, _: removed[0] if removed and node == "target" else None)
    client, stays = rig.client(port, mode), rig.client(port, mode, tls=rig.tls("stays"))
    for one in (client, stays):
        assert fetch(one, 0, 5) == CONTENT[:5]
    kept = [pipe for pipe, _ in stays._idle]
    removed.append("it was removed")
    rig.last_server.hang_up({NodeId("target")})
    with pytest.raises(PeerRefused, match="it was removed"):
        fetch(client)
    assert fetch(stays) == CONTENT
    assert [pipe for pipe, _ in stays._idle] == kept, "over the connection that it had"


def test_a_ticket_that_expired(rig: Rig) -> None:
    port = rig.server("ticket", ticket_lifetime_seconds=1e-9)
    with pytest.raises(PeerRefused, match="ticket for chunks is not known, or has expired"):
        fetch(rig.client(port, "ticket"))


# --- on the way ---


def pump(
    source: socket.socket,
    target: socket.socket,
    heard: bytearray | None,
    change: Callable[[bytes, int], bytes] | None,
) -> None:
    offset = 0
    with suppress(OSError):
        while data := source.recv(65536):
            if heard is not None:
                heard.extend(data)
                changed = change(data, offset) if change is not None else data
                offset += len(data)
                data = changed
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def eavesdropper(rig: Rig, client: BulkClient, change: Callable[[bytes, int], bytes] | None = None):
    """Stands between client and the plain port; ``change`` sees (data, offset) of what the source sends."""
    server = rig.last_server
    real = server._plain_port
    listening = socket.create_server((HOST, 0))
    server._plain_port = listening.getsockname()[1]
    heard = bytearray()

    def accept() -> None:
        while True:
            try:
                one, _ = listening.accept()
            except OSError:
                return
            other = socket.create_connection((HOST, real))
            pairs = [(one, other, None, None), (other, one, heard, change)]
            pumps = [threading.Thread(target=pump, args=pair) for pair in pairs]
            for each in pumps:
                each.start()
            for each in pumps:
                each.join()
            one.close()
            other.close()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield lambda: bytes(heard)
    finally:
        client.interrupt()
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        listening.close()


@pytest.mark.parametrize("place", [500, 700_000, len(CONTENT) + 50, len(CONTENT) + TAG_BYTES + 60])
def test_a_tampered_chunk_is_refused(rig: Rig, place: int) -> None:
    """Whatever bit is flipped behind the opening: of the chunk, or of its tag."""
    flipped: list[int] = []

    def flip(data: bytes, offset: int) -> bytes:
        if offset <= place < offset + len(data):
            flipped.append(place)
            at = place - offset
            data = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
        return data

    client = rig.client(rig.server("ticket"), "ticket")
    with eavesdropper(rig, client, flip):
        if place < len(CONTENT) + TAG_BYTES + 50:
            with pytest.raises(ProtocolError, match="was changed on the way"):
                fetch(client)
            assert flipped == [place]
        else:
            assert fetch(client) == CONTENT  # it lies behind everything that was sent


def test_a_replayed_chunk_is_refused(rig: Rig) -> None:
    """A tag is good once: the first answer's does not pass for that of a second and identical request."""
    tags: list[bytes] = []
    size = 1000
    opening, answer = 24 + 7, HEADER.size + 3 + size + TAG_BYTES

    def replay(data: bytes, offset: int) -> bytes:
        end = offset + len(data) - opening
        if end <= 0 or end % answer:
            return data
        assert len(data) >= TAG_BYTES
        tags.append(data[-TAG_BYTES:])
        return data[:-TAG_BYTES] + tags[0]

    client = rig.client(rig.server("ticket"), "ticket")
    with eavesdropper(rig, client, replay):
        assert fetch(client, 0, size) == CONTENT[:size]
        with pytest.raises(ProtocolError, match="was changed on the way"):
            fetch(client, 0, size)
    assert len(set(tags)) == 2


@pytest.mark.parametrize("mode", MODES)
def test_a_source_that_dies_within_a_chunk(rig: Rig, mode: str) -> None:
    client = rig.client(rig.server(mode), mode)
    memory = memoryview(bytearray(len(CONTENT)))
    heard: list[int] = []

    def kill(count: int) -> None:
        if not heard:
            rig.last_server.close()
        heard.append(count)

    with pytest.raises(PeerUnreachable):
        client.fetch("digest", "weights", 0, [memory] * 40, kill)
    assert sum(heard) > 0


def test_a_source_that_stalls(rig: Rig) -> None:
    silent = socket.create_server((HOST, 0))
    client = rig.client(silent.getsockname()[1], "plain", stall_timeout_seconds=0.1)
    with pytest.raises(PeerUnreachable, match="no byte arrived in time"):
        fetch(client)
    silent.close()


@pytest.mark.parametrize("mode", MODES)
def test_giving_up_from_another_thread(rig: Rig, mode: str) -> None:
    client = rig.client(rig.server(mode), mode)
    memory = memoryview(bytearray(len(CONTENT)))
    with pytest.raises(PeerUnreachable):
        client.fetch("digest", "weights", 0, [memory] * 40, lambda _count: client.interrupt())
    with pytest.raises(PeerUnreachable, match="given up"):
        fetch(client)


# --- garbage ---

GARBAGE = [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 10_000, b"\0" * 10_000, b"\x05\0\0\0\x01\x45\x93\x01", b""]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("data", GARBAGE, ids=["http", "ones", "zeroes", "half", "nothing"])
def test_garbage_on_every_port(rig: Rig, mode: str, data: bytes) -> None:
    port = rig.server(mode, handshake_timeout_seconds=0.3, idle_timeout_seconds=0.3)
    ports = {port, rig.last_server._plain_port} - {0}
    for each in ports:
        with socket.create_connection((HOST, each), timeout=60) as rude:
            rude.sendall(data)
            try:
                while rude.recv(4096):
                    pass
            except ConnectionError:
                pass
    fetch_at_last(rig, port, mode)


@pytest.mark.parametrize("mode", ["tls", "ticket"])
def test_slow_strangers(rig: Rig, mode: str) -> None:
    port = rig.server(mode, handshake_timeout_seconds=0.4, strangers_max=3)
    target = port if mode == "tls" else rig.last_server._plain_port
    slow = [socket.create_connection((HOST, target)) for _ in range(3)]
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        for each in slow:
            try:
                each.send(b"\x16")
            except OSError:
                slow = [other for other in slow if other is not each]
                each.close()
                break
        if not slow:
            break
        time.sleep(0.05)
    assert slow == []
    fetch_at_last(rig, port, mode)


def test_too_many_connections(rig: Rig) -> None:
    port = rig.server("plain", connections_max=1)
    first, second = rig.client(port, "plain"), rig.client(port, "plain")
    assert fetch(first, 0, 5) == CONTENT[:5]
    with pytest.raises(SllmdError):
        fetch(second, 0, 5)
    first.close()
    until(lambda: not rig.open_holdings, "its place is free")
    assert fetch(rig.client(port, "plain"), 0, 5) == CONTENT[:5]


@pytest.mark.parametrize(
    "request_",
    [
        None,
        1,
        (),
        ("digest", "weights", -1, 5, False),
        ("digest", "weights", 0, 0, False),
        ("digest", "weights", 0, 1 << 40, False),
    ],
)
def test_requests_that_are_none(rig: Rig, request_: Any) -> None:
    from sllmd.wire.bulk.messages import Kind, parse_read

    assert Kind.READ
    with pytest.raises(ProtocolError, match="cannot be understood"):
        parse_read(request_, 1 << 28)

"""What arrives on the UDP port and is no sealed box is dropped, counted and never answered."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest

from sllmd.core.errors import ProtocolError
from sllmd.wire.addresses import format_address
from sllmd.wire.datagram import DatagramEndpoint
from sllmd.wire.inquiry import InquiryServer, inquire
from sllmd.wire.ports import BoundPort, bind_port
from sllmd.wire.seal import Drop, Keyring, Sealer

KEY = bytes(range(32))
BYTES_MAX = 1400


def sealer(cluster: str = "one", key: bytes = KEY) -> Sealer:
    return Sealer(Keyring([key]), cluster)


class Heard:
    """An endpoint and what it took."""

    def __init__(self) -> None:
        self.contents: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.bound = bind_port("127.0.0.1", 0, exactly=False)
        self.address = format_address("127.0.0.1", self.bound.port)
        self.endpoint = DatagramEndpoint(
            sealer(), bytes_max=BYTES_MAX, on_contents=lambda *heard: self.contents.put_nowait(heard)
        )

    async def sync(self, sender: socket.socket, boxes: Sealer) -> None:
        """Everything sent before is handled: loopback keeps the order."""
        sender.sendto(boxes.seal(b"sync"), ("127.0.0.1", self.bound.port))
        while (await asyncio.wait_for(self.contents.get(), 5))[1] != b"sync":
            pass


@pytest.fixture
async def heard() -> AsyncIterator[Heard]:
    one = Heard()
    await one.endpoint.open(one.bound.datagrams)
    yield one
    one.endpoint.close()
    one.bound.close()


async def test_members_hear_each_other_and_from_where(heard: Heard) -> None:
    other = Heard()
    await other.endpoint.open(other.bound.datagrams)
    other.endpoint.send(heard.address, b"hello")
    assert await asyncio.wait_for(heard.contents.get(), 5) == (other.address, b"hello")
    other.endpoint.close()
    other.endpoint.send(heard.address, b"after close")
    other.bound.close()


async def test_a_flood_of_garbage_is_counted_and_harms_nobody(heard: Heard) -> None:
    friend = sealer()
    once = friend.seal(b"once")
    packets = {
        Drop.SHORT: b"\x01abc",
        Drop.NEW_VERSION: b"\xff" * 100,
        Drop.OLD_VERSION: b"\x00" * 100,
        Drop.OVERSIZED: os.urandom(8000),
        Drop.UNKNOWN_KEY: sealer(key=bytes(32)).seal(b"x"),
        Drop.OTHER_CLUSTER: sealer("two").seal(b"x"),
        Drop.FORGED: once[:-1] + bytes([once[-1] ^ 1]),
        Drop.REPLAYED: once,
    }
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(once, ("127.0.0.1", heard.bound.port))
        for _ in range(20):
            for packet in packets.values():
                stranger.sendto(packet, ("127.0.0.1", heard.bound.port))
            await heard.sync(stranger, friend)
        assert heard.endpoint.dropped == dict.fromkeys(packets, 20)
        assert heard.endpoint.taken == 21
        stranger.setblocking(False)
        with pytest.raises(BlockingIOError):
            stranger.recv(1)


async def test_sending_where_nobody_listens_harms_nobody(heard: Heard) -> None:
    nobody = bind_port("127.0.0.1", 0, exactly=False)
    nobody.close()
    for _ in range(3):
        heard.endpoint.send(format_address("127.0.0.1", nobody.port), b"x")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as friend:
        await heard.sync(friend, sealer())


# --- streams ---


@pytest.fixture
async def server() -> AsyncIterator[tuple[InquiryServer, BoundPort]]:
    async def answer(question: bytes) -> bytes | None:
        return question[::-1] if question else None

    one = InquiryServer(
        sealer(), bytes_max=100_000, connections_max=4, timeout_seconds=0.3, on_question=answer
    )
    bound = bind_port("127.0.0.1", 0, exactly=False)
    await one.open(bound.streams)
    yield one, bound
    await one.close()
    bound.close()


async def ask(bound: BoundPort, question: bytes, boxes: Sealer | None = None) -> bytes:
    address = format_address("127.0.0.1", bound.port)
    return await inquire(boxes or sealer(), address, question, bytes_max=100_000, timeout_seconds=2)


async def test_a_question_and_its_answer(server: tuple[InquiryServer, BoundPort]) -> None:
    assert await ask(server[1], b"abc") == b"cba"
    assert await ask(server[1], bytes(90_000)) == bytes(90_000)


@pytest.mark.parametrize(
    ("data", "drop"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", Drop.OVERSIZED),
        (b"\xff\xff\xff\xff", Drop.OVERSIZED),
        (b"\x00\x00\x00\x05hello", Drop.SHORT),
        (b"\x00\x00\x00\x64" + b"\xff" * 100, Drop.NEW_VERSION),
        (b"\x00\x00\x00\x64half", Drop.SHORT),
        (b"\x00", Drop.SHORT),
    ],
)
async def test_strangers_are_cut_off(
    server: tuple[InquiryServer, BoundPort], data: bytes, drop: Drop
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server[1].port)
    writer.write(data)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert server[0].dropped == {drop: 1}
    assert await ask(server[1], b"abc") == b"cba"


async def test_who_holds_connections_open_is_cut_off_in_time(server: tuple[InquiryServer, BoundPort]) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", server[1].port) for _ in range(6)]
    for reader, writer in silent:
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    assert server[0].dropped == {Drop.FULL: 2, Drop.SHORT: 4}
    assert await ask(server[1], b"abc") == b"cba"


async def test_another_key_gets_no_answer(server: tuple[InquiryServer, BoundPort]) -> None:
    with pytest.raises(ProtocolError, match="no answer of this cluster"):
        await ask(server[1], b"abc", sealer(key=bytes(32)))
    assert server[0].dropped == {Drop.UNKNOWN_KEY: 1}

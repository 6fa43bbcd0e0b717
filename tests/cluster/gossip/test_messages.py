"""Bytes there and back, and whatever is no message."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmd.cluster.codec import pack
from sllmd.cluster.gossip.messages import (
    PACKET_FRAMING_BYTES,
    Ack,
    Conflict,
    Dead,
    Exchange,
    Fact,
    Left,
    Message,
    Nack,
    Ping,
    PingRequest,
    Refusal,
    Status,
    StreamMessage,
    Suspect,
    pack_packet,
    pack_stream,
    packed_bytes,
    unpack_packet,
    unpack_stream,
)
from sllmd.cluster.gossip.meta import META_BYTES_MAX, Meta, pack_meta, unpack_meta
from sllmd.core.errors import ConfigError, ProtocolError
from sllmd.core.ids import NodeId
from tests.cluster.gossip.seat import alive

A, B = NodeId("a"), NodeId("b")
MESSAGES: list[Message] = [
    alive("a", 3, meta=b"\x00\xff"), Suspect(A, 1, B), Dead(A, 2, B), Left(A, 9), Ping(1 << 40, A, B),
    PingRequest(2, A, B, "b:1"), Ack(3, A), Nack(4, A), Conflict(A, "a:1"),
]  # fmt: skip
STREAM_MESSAGES: list[StreamMessage] = [
    Ping(1, A, B), Ack(1, B), Refusal("why"), Conflict(A, "a:1"),
    Exchange(alive("a"), True, (Fact(alive("b"), 4, Status.SUSPECT),)),
]  # fmt: skip


def test_packets_there_and_back() -> None:
    data = pack_packet(MESSAGES)
    assert unpack_packet(data) == tuple(MESSAGES)
    assert len(data) <= sum(map(packed_bytes, MESSAGES)) + PACKET_FRAMING_BYTES


@pytest.mark.parametrize("message", STREAM_MESSAGES)
def test_stream_messages_there_and_back(message: StreamMessage) -> None:
    assert unpack_stream(pack_stream(message)) == message


@given(st.binary(max_size=100))
def test_garbage_is_an_error(data: bytes) -> None:
    for unpack in (unpack_packet, unpack_stream):
        try:
            unpack(data)
        except ProtocolError:
            continue
        assert unpack is unpack_packet  # the empty packet
        assert data[:1] in (b"\x90", b"\xdc", b"\xdd")


@given(st.integers(0, 400), st.integers(1, 255))
def test_a_damaged_packet_is_a_packet_or_an_error(place: int, change: int) -> None:
    data = bytearray(pack_packet(MESSAGES))
    data[place % len(data)] ^= change
    with contextlib.suppress(ProtocolError):
        unpack_packet(bytes(data))


@pytest.mark.parametrize(
    "item",
    [
        None, [], [99, "a"], [3, "a", 1], [3, "a", -1, "b"], [3, "a", 1 << 62, "b"], [3, 1, 1, "b"],
        [1, "a", 0, "", "a:1", 1, 1, b""], [1, "a", 0, "n" * 129, "a:1", 1, 1, b""],
        [1, "a", 0, "n", "a:1", 1, 1, bytes(513)], [1, "a", 0, "n", "a:1", 2, 1, b""],
        [1, "a", 0, "n", "a:1", 0, 1, b""], [5, 1, "a", "b", "surplus"], [11, "a refusal in a packet"],
    ],
)  # fmt: skip
def test_what_is_no_message(item: object) -> None:
    with pytest.raises(ProtocolError):
        unpack_packet(pack([item]))


def test_a_packet_of_too_many() -> None:
    with pytest.raises(ProtocolError, match="at most 256"):
        unpack_packet(pack([[7, 1, "a"]] * 257))


def test_a_fact_cannot_be_older_than_its_claim() -> None:
    with pytest.raises(ProtocolError, match="older than the claim"):
        unpack_stream(pack_stream(Exchange(alive("a"), False, (Fact(alive("b", 5), 4, Status.ALIVE),))))


def test_meta_there_and_back() -> None:
    meta = Meta("10.0.0.1:8344", "0.1.0", ("voter", "server"), 7, A)
    assert unpack_meta(pack_meta(meta)) == meta
    with pytest.raises(ConfigError, match="512 are allowed"):
        pack_meta(Meta("x" * 600, "1"))
    with pytest.raises(ProtocolError):
        unpack_meta(bytes(META_BYTES_MAX + 1))
    with pytest.raises(ProtocolError):
        unpack_meta(b"nonsense")

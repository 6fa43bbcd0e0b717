"""Bytes on the wire: every message comes back the same; anything else is refused."""

from __future__ import annotations

import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmd.cluster.codec import Codec, pack, unpack
from sllmd.cluster.raft.entries import Entry, EntryKind, SnapshotMeta, decode_membership, encode_membership
from sllmd.cluster.raft.messages import (
    Append,
    AppendReply,
    Message,
    PreVoteReply,
    PreVoteRequest,
    ReadReply,
    ReadRequest,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    pack_message,
    unpack_message,
)
from sllmd.core.errors import ProtocolError
from tests.cluster.play import A, B, members

META = SnapshotMeta(9, 2, members("ab", "c"), 1 << 40, (1 << 64) - 1)
MESSAGES: list[Message] = [
    PreVoteRequest(A, B, 3, 9, 2),
    PreVoteReply(A, B, 3, True),
    VoteRequest(A, B, 3, 9, 2, False),
    VoteReply(A, B, 3, False),
    Append(
        A, B, 3, 8, 2, (Entry(9, 3, EntryKind.NOOP, b""), Entry(10, 3, EntryKind.COMMAND, b"\x00x")), 7, 4
    ),
    AppendReply(A, B, 3, 4, True, 8, 10, 0),
    SnapshotChunk(A, B, 3, META, 300, b"part"),
    SnapshotReply(A, B, 3, 9, 304),
    TimeoutNow(A, B, 3),
    ReadRequest(A, B, 3, 77, 1),
    ReadReply(A, B, 3, 77, 1, 10),
]


def test_the_examples_are_all_there_are() -> None:
    assert {type(one) for one in MESSAGES} == set(typing.get_args(Message))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_every_message_survives_its_bytes(message: Message) -> None:
    assert unpack_message(pack_message(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_half_a_message_is_none(message: Message) -> None:
    data = pack_message(message)
    for size in range(len(data)):
        with pytest.raises(ProtocolError):
            unpack_message(data[:size])
    with pytest.raises(ProtocolError):
        unpack_message(data + b"\x00")


@pytest.mark.parametrize(
    "items",
    [
        [],
        None,
        [99, "a", "b", 1],
        ["4", "a", "b", 3, True],
        [4, "a", "b", 3],
        [4, "a", "b", 3, True, 0],
        [4, "a", "b", True, True],
        [4, "a", b"b", 3, True],
        [4, "a", "b", 3, 1],
        [5, "a", "b", 3, 8, 2, [[9, 3, 7, b""]], 7, 4],
        [5, "a", "b", 3, 8, 2, [9], 7, 4],
        [5, "a", "b", 3, 8, 2, 9, 7, 4],
    ],
)
def test_what_does_not_fit_is_refused(items: object) -> None:
    with pytest.raises(ProtocolError):
        unpack_message(pack(items))


@given(st.binary(max_size=80))
def test_garbage_is_refused_or_a_message(data: bytes) -> None:
    try:
        found = unpack_message(data)
    except ProtocolError:
        return
    assert type(found) in typing.get_args(Message)


def test_memberships_have_one_form() -> None:
    assert encode_membership(members("cab")) == encode_membership(members("abc"))
    assert decode_membership(encode_membership(members("abc", "d"))) == members("abc", "d")


def test_a_tag_names_one_type() -> None:
    codec = Codec({1: TimeoutNow})
    assert unpack(codec.pack(TimeoutNow(A, B, 1))) == [1, "a", "b", 1]
    with pytest.raises(KeyError):
        codec.encode(MESSAGES[0])

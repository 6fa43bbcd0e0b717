import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmd.core.errors import (
    BusyError,
    CallerError,
    NodeDraining,
    PeerUnreachable,
    ProtocolError,
    QueueFull,
    SllmdError,
)
from sllmd.wire.rpc.envelope import BUFFER_BYTES_MAX, FIRST_BUFFER_BYTES, HEADER, Inlet, Kind, frame
from sllmd.wire.rpc.faults import copy_of, decode_fault, encode_fault
from sllmd.wire.rpc.hello import Hello, parse_hello

LIMIT = 1 << 20


def read(inlet: Inlet, stream: bytes, sizes: list[int]) -> list[tuple[int, int, bytes]]:
    """What comes out when ``stream`` arrives in pieces of ``sizes``, the last one over and over."""
    heard, at = [], 0
    steps = iter(sizes)
    size = 1
    while at < len(stream):
        size = next(steps, size)
        space = inlet.space()
        piece = stream[at : at + min(size, len(space))]
        space[: len(piece)] = piece
        heard += [(version, kind, bytes(payload)) for version, kind, payload in inlet.frames(len(piece))]
        at += len(piece)
    return heard


@given(
    st.lists(st.integers(0, 3 * FIRST_BUFFER_BYTES), max_size=6),
    st.lists(st.integers(1, 2 * FIRST_BUFFER_BYTES), min_size=1, max_size=6),
)
def test_frames_come_out_whatever_the_reads(lengths: list[int], sizes: list[int]) -> None:
    bodies = [bytes([number]) * length for number, length in enumerate(lengths)]
    stream = b"".join(frame(Kind.NOTE, body, version=1, frame_bytes_max=LIMIT) for body in bodies)
    sizes.append(max(sizes[-1], 500))
    heard = read(Inlet(LIMIT), stream, sizes)
    assert [(version, kind, msgpack.unpackb(payload)) for version, kind, payload in heard] == [
        (1, Kind.NOTE, body) for body in bodies
    ]


def test_memory_follows_what_arrives_and_not_what_is_announced() -> None:
    inlet = Inlet(1 << 30)
    assert read(inlet, HEADER.pack(1 << 30, 1, Kind.CALL) + bytes(1000), [100]) == []
    assert len(inlet.space().obj) <= FIRST_BUFFER_BYTES


def test_memory_is_given_back_after_a_large_frame() -> None:
    inlet = Inlet(1 << 24)
    read(inlet, frame(Kind.NOTE, bytes(5_000_000), version=1, frame_bytes_max=1 << 24), [1 << 20])
    assert len(inlet.space().obj) <= BUFFER_BYTES_MAX


def test_a_frame_over_the_limit() -> None:
    with pytest.raises(ProtocolError, match="over the limit"):
        read(Inlet(100), HEADER.pack(101, 1, Kind.CALL), [6])
    with pytest.raises(ProtocolError, match="over the limit"):
        frame(Kind.NOTE, bytes(100), version=1, frame_bytes_max=100)


def test_errors_of_a_newer_release_come_out_as_the_nearest_that_is_known() -> None:
    _kinds, *rest = encode_fault(NodeDraining("x", retry_after_seconds=1.0))
    kinds = ("NewFangled", "BusyError", "SllmdError")
    assert type(decode_fault((kinds, *rest))) is BusyError
    unknown = decode_fault((("NewFangled",), "new_code", "m", None, {"a": 1}))
    assert type(unknown) is SllmdError
    assert (unknown.code, unknown.message, vars(unknown)["a"]) == ("new_code", "m", 1)


@pytest.mark.parametrize(
    "error",
    [
        QueueFull("full", retry_after_seconds=0.5, hint="wait"),
        CallerError("bad", param="n", code="special"),
        PeerUnreachable("gone", in_doubt=True),
    ],
)
def test_a_copy_is_the_same_but_for_where_it_was_raised(error: SllmdError) -> None:
    copied = copy_of(error)
    assert (type(copied), vars(copied), copied.code, str(copied)) == (
        type(error),
        vars(error),
        error.code,
        str(error),
    )
    assert copied is not error


def test_a_fault_cannot_set_what_is_not_its_own() -> None:
    error = decode_fault((("SllmdError",), "c", "m", None, {"__class__": 1, "_private": 2, "a b": 3, 4: 5}))
    assert vars(error) == {"message": "m", "hint": None, "code": "c"}


@pytest.mark.parametrize(
    "value", [None, 1, (), (1, 2, 3, 4, 5), ((), "c", "m", 5, {}), ("SllmdError", "c", "m", None, {})]
)
def test_what_is_no_fault(value: object) -> None:
    with pytest.raises(ProtocolError):
        decode_fault(value)


def test_a_long_message_still_fits() -> None:
    assert len(msgpack.packb(encode_fault(SllmdError("x" * 100_000, hint="y" * 100_000)))) < 10_000


def test_keys_of_a_newer_hello_are_passed_over() -> None:
    hello = Hello("c", "n", (1, 2), {"a": 1})  # type: ignore[arg-type]
    assert parse_hello(hello.to_wire() | {"later": 5}) == hello

"""Torn or corrupt? Every single cut and every single flipped bit is tried."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sllmd.cluster.journal import frames
from sllmd.cluster.journal.frames import Frame, Torn, frame, read_frame, read_segment_header, segment_header
from sllmd.core.errors import JournalCorrupt

BODIES = [b"first", b"", b"\x00" * 1500, bytes(range(256)) * 3, b"last \x00\x00\x00"]


def file_of(bodies: list[bytes]) -> tuple[bytes, list[int]]:
    """A segment's bytes, and where each frame ends."""
    data, ends = segment_header(7), []
    for sequence, body in enumerate(bodies, 7):
        data += frame(sequence, body)
        ends.append(len(data))
    return data, ends


def read_all(data: bytes) -> tuple[list[bytes], int | None]:
    """The bodies of sound frames, and where the torn end begins."""
    first = read_segment_header(data, "wal")
    if isinstance(first, Torn):
        return [], 0
    offset, bodies = frames.SEGMENT_HEADER_BYTES, []
    while offset < len(data):
        found = read_frame(data, offset, first + len(bodies), "wal")
        if isinstance(found, Torn):
            return bodies, offset
        bodies.append(found.body)
        offset = found.end
    return bodies, None


@given(st.lists(st.binary(max_size=3000) | st.just(bytes(2000)) | st.just(b"\xff" * 2000), max_size=5))
def test_what_is_written_is_read(bodies: list[bytes]) -> None:
    data, _ = file_of(bodies)
    assert read_all(data) == (bodies, None)


def test_a_file_that_ends_anywhere_gives_the_frames_before() -> None:
    data, ends = file_of(BODIES)
    for size in range(len(data)):
        whole = sum(end <= size for end in ends)
        bodies, torn_at = read_all(data[:size])
        assert bodies == BODIES[:whole]
        clean = size in (frames.SEGMENT_HEADER_BYTES, *ends)
        assert (torn_at is None) == clean


@pytest.mark.parametrize("last", BODIES)
def test_a_flipped_bit_is_never_taken_for_a_torn_end(last: bytes) -> None:
    """Anywhere in what was synced, the last frame's length, magic and end included."""
    data, _ = file_of([b"before", last])
    step = 1 if len(data) < 400 else 3
    for at in range(0, len(data), step):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            with pytest.raises(JournalCorrupt):
                read_all(bytes(changed))


@given(
    body=st.binary(min_size=600, max_size=4000) | st.just(bytes(3000)),
    chosen=st.sets(st.integers(0, 9), min_size=1),
)
@settings(max_examples=200)
def test_sectors_that_were_never_written_are_a_torn_end(body: bytes, chosen: set[int]) -> None:
    data, ends = file_of([b"before", body])
    start = ends[0]
    sectors = range(start // 512, (len(data) - 1) // 512 + 1)
    changed = bytearray(data)
    for sector in {sectors[one % len(sectors)] for one in chosen}:
        low, high = max(start, sector * 512), min(len(data), (sector + 1) * 512)
        changed[low:high] = bytes(high - low)
    assert read_all(bytes(changed)) == ([b"before"], start)


def test_a_damaged_frame_before_a_sound_one_is_corrupt_even_if_it_looks_torn() -> None:
    data, ends = file_of([b"a", bytes(range(200)) * 10, b"c"])
    changed = bytearray(data)
    changed[1024:1536] = bytes(512)
    assert ends[0] < 1024 < 1536 < ends[1]
    with pytest.raises(JournalCorrupt, match="a sound one follows"):
        read_all(bytes(changed))


def test_a_frame_out_of_its_order_is_corrupt() -> None:
    data = segment_header(1) + frame(1, b"a") + frame(3, b"c")
    with pytest.raises(JournalCorrupt):
        read_all(data)


def test_another_version_is_refused_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "VERSION", 2)
    data = segment_header(1)
    monkeypatch.undo()
    with pytest.raises(JournalCorrupt, match="version 2 is not 1"):
        read_segment_header(data, "wal")


def test_a_frame_knows_where_it_ends() -> None:
    data, ends = file_of([b"abc"])
    assert read_frame(data, frames.SEGMENT_HEADER_BYTES, 7, "wal") == Frame(7, b"abc", ends[0])

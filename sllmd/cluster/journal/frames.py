"""Bytes of the write-ahead log, and the rule that tells a torn frame from a corrupt one. Pure.

A segment is a header and frames::

    segment   magic "SLJW" | u16 version | u16 0 | u64 first sequence | u64 checksum
    frame     magic "FRAM" | u32 length | u64 sequence | u8 mask | 3 x 0 | u64 body check | u64 head check
              body (length bytes, each xor mask) | 0xA7

A crash may tear the frame that was being written: its end is missing, or 512-byte sectors of it were
never written and read as zeros. It cannot turn written bytes into others. So a frame that reads wrong is
**torn** if the file ends inside it, or if the part of it in some sector is all zeros; then it was never
synced and nobody was promised anything. Otherwise it is **corrupt**: bytes that were synced have changed.
Three things make the rule exact: a mask is chosen so that no sound body holds a run of bytes that would
read as an unwritten sector; magics and the last byte have no zero in them; and the head has a checksum of
its own, so that a changed length cannot pass for a missing end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import xxhash

from sllmd.core.errors import JournalCorrupt

VERSION = 1
SECTOR_BYTES = 512

_SEGMENT = struct.Struct(">4sHHQ")
_FRAME = struct.Struct(">4sIQB3xQ")
_CHECK = struct.Struct(">Q")
_SEGMENT_MAGIC = b"SLJW"
_FRAME_MAGIC = b"FRAM"
_END = b"\xa7"
_ZERO_RUN_BYTES = SECTOR_BYTES - 64
"""Shorter than a sector by more than a head, so that head and body together cannot fill one with zeros."""

SEGMENT_HEADER_BYTES = _SEGMENT.size + _CHECK.size
FRAME_HEAD_BYTES = _FRAME.size + _CHECK.size
BODY_BYTES_MAX = 1 << 30
"""A frame is one group of writes; a greater one is a mistake of ours."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A sound frame."""

    sequence: int
    body: bytes
    end: int
    """The offset behind it."""


@dataclass(frozen=True, slots=True)
class Torn:
    """From this offset on nothing was ever synced."""

    offset: int


def segment_header(first_sequence: int) -> bytes:
    """How a segment begins."""
    head = _SEGMENT.pack(_SEGMENT_MAGIC, VERSION, 0, first_sequence)
    return head + _CHECK.pack(xxhash.xxh3_64_intdigest(head))


def read_segment_header(data: bytes, name: str) -> int | Torn:
    """The segment's first sequence; raises JournalCorrupt."""
    head, check = data[: _SEGMENT.size], data[_SEGMENT.size : SEGMENT_HEADER_BYTES]
    if len(data) < SEGMENT_HEADER_BYTES or not any(data[:SEGMENT_HEADER_BYTES]):
        return Torn(0)
    if _CHECK.unpack(check)[0] != xxhash.xxh3_64_intdigest(head):
        raise _corrupt(name, 0, "the segment's header has a wrong checksum")
    _, version, _, first_sequence = _SEGMENT.unpack(head)
    if version != VERSION:
        raise _corrupt(name, 0, f"version {version} is not {VERSION}, the one this sllmd writes")
    return int(first_sequence)


def frame(sequence: int, body: bytes) -> bytes:
    """One frame's bytes."""
    assert len(body) <= BODY_BYTES_MAX
    mask = _mask_for(body)
    masked = _apply(mask, body)
    head = _FRAME.pack(_FRAME_MAGIC, len(body), sequence, mask, xxhash.xxh3_64_intdigest(masked, sequence))
    return b"".join((head, _CHECK.pack(xxhash.xxh3_64_intdigest(head)), masked, _END))


def read_frame(data: bytes, offset: int, sequence: int, name: str) -> Frame | Torn:
    """The frame that must stand at ``offset``; raises JournalCorrupt."""
    found = _sound_frame(data, offset, sequence)
    if found is not None:
        return found
    if _is_torn(data, offset):
        after = _any_later_frame(data, offset, sequence)
        if after is None:
            return Torn(offset)
        raise _corrupt(name, offset, f"a frame is damaged, and a sound one follows at {after}")
    raise _corrupt(name, offset, "a frame's checksum is wrong")


def _sound_frame(data: bytes, offset: int, sequence: int | None) -> Frame | None:
    head = data[offset : offset + FRAME_HEAD_BYTES]
    if not _head_is_sound(head):
        return None
    _, length, found, mask, check = _FRAME.unpack_from(head)
    start = offset + FRAME_HEAD_BYTES
    masked = data[start : start + length]
    end = start + length + len(_END)
    if data[end - 1 : end] != _END or xxhash.xxh3_64_intdigest(masked, found) != check:
        return None
    if sequence is not None and found != sequence:
        return None
    return Frame(found, _apply(mask, masked), end)


def _head_is_sound(head: bytes) -> bool:
    return (
        len(head) == FRAME_HEAD_BYTES
        and head.startswith(_FRAME_MAGIC)
        and _CHECK.unpack_from(head, _FRAME.size)[0] == xxhash.xxh3_64_intdigest(head[: _FRAME.size])
    )


def _is_torn(data: bytes, offset: int) -> bool:
    head = data[offset : offset + FRAME_HEAD_BYTES]
    if len(head) < FRAME_HEAD_BYTES:
        return True
    end = offset + FRAME_HEAD_BYTES
    if _head_is_sound(head):
        end += _FRAME.unpack_from(head)[1] + len(_END)
        if end > len(data):
            return True
    return _has_unwritten_sector(data, offset, end)


def _has_unwritten_sector(data: bytes, offset: int, end: int) -> bool:
    start = offset
    while start < end:
        stop = min(end, start - start % SECTOR_BYTES + SECTOR_BYTES)
        if not any(data[start:stop]):
            return True
        start = stop
    return False


def _any_later_frame(data: bytes, offset: int, sequence: int) -> int | None:
    """A frame is written only after the one before it was synced: a later one proves that this one was."""
    at = data.find(_FRAME_MAGIC, offset + 1)
    while at != -1:
        later = _sound_frame(data, at, None)
        if later is not None and later.sequence > sequence:
            return at
        at = data.find(_FRAME_MAGIC, at + 1)
    return None


def _mask_for(body: bytes) -> int:
    """0, unless the body holds a long run of zeros; then a byte of which it holds no such run."""
    return next(mask for mask in range(256) if bytes((mask,)) * _ZERO_RUN_BYTES not in body)


def _apply(mask: int, body: bytes) -> bytes:
    return body if mask == 0 else body.translate(bytes(value ^ mask for value in range(256)))


def _corrupt(name: str, offset: int, what: str) -> JournalCorrupt:
    return JournalCorrupt(
        f"the journal is corrupt: {name}, byte {offset}: {what}",
        hint="this node must not take part with it; move its cluster data away and let it join again",
    )

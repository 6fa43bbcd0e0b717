"""What a frame's body says: a group of writes in their order. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sllmd.cluster.codec import Codec, pack, unpack
from sllmd.cluster.raft.entries import Entry, HardState, SnapshotMeta
from sllmd.core.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Entries:
    """They replace everything from the first one's index on."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Installed:
    """A received snapshot took the place of the log: all entries before this record are void."""

    meta: SnapshotMeta


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot of this node's own: entries up to it are no longer needed, later ones stay."""

    meta: SnapshotMeta


@dataclass(frozen=True, slots=True)
class Agreed:
    """Everything up to this entry is agreed."""

    index: int


Record = Entries | HardState | Installed | Taken | Agreed

_CODEC = Codec({1: Entries, 2: HardState, 3: Installed, 4: Taken, 5: Agreed})


def pack_records(records: list[Record]) -> bytes:
    """A frame's body."""
    return pack([_CODEC.encode(record) for record in records])


def unpack_records(body: bytes) -> list[Record]:
    """The inverse; raises ProtocolError (the checksum was right: another version wrote it)."""
    items = unpack(body)
    if not isinstance(items, list):
        raise ProtocolError("a frame's body is not an array of records")
    return [_CODEC.decode(item) for item in items]

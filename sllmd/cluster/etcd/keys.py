"""Where things lie in etcd, and the bytes of what is not a command. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sllmd.cluster.codec import pack, unpack
from sllmd.core.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one cluster."""

    root: str

    @property
    def commands(self) -> bytes:
        """All batches of commands lie below."""
        return f"{self.root}/live/command/".encode()

    @property
    def leader(self) -> bytes:
        """The leader's seat."""
        return f"{self.root}/live/leader".encode()

    @property
    def tip(self) -> bytes:
        """Rewritten with every batch."""
        return f"{self.root}/tip".encode()

    @property
    def pointer(self) -> bytes:
        """Names the snapshot that counts."""
        return f"{self.root}/pointer".encode()

    @property
    def snapshots(self) -> bytes:
        """All pieces of all snapshots lie below."""
        return f"{self.root}/snapshot/".encode()

    def command(self, name: str) -> bytes:
        """One batch."""
        return self.commands + name.encode()

    def piece(self, snapshot: str, index: int) -> bytes:
        """One piece of a snapshot."""
        return self.snapshots + f"{snapshot}/{index:08d}".encode()


@dataclass(frozen=True, slots=True)
class Pointer:
    """Which snapshot counts: it holds every batch up to ``position``, in so many pieces."""

    position: int
    name: str
    pieces: int
    previous: int
    """The position of the snapshot before it."""


def pack_pointer(pointer: Pointer) -> bytes:
    """As a value."""
    return pack([pointer.position, pointer.name, pointer.pieces, pointer.previous])


def unpack_pointer(data: bytes) -> Pointer:
    """The inverse; raises ProtocolError."""
    match unpack(data):
        case [int(position), str(name), int(pieces), int(previous)]:
            return Pointer(position, name, pieces, previous)
    raise ProtocolError("not a snapshot's pointer")


def pack_batch(commands: list[bytes]) -> bytes:
    """Commands as a value."""
    return pack(commands)


def unpack_batch(data: bytes) -> list[bytes]:
    """The inverse. What is no batch counts as one command, which every catalogue refuses alike."""
    try:
        items = unpack(data)
    except ProtocolError:
        return [data]
    if isinstance(items, list) and items and all(isinstance(item, bytes) for item in items):
        return items
    return [data]

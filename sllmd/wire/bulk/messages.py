"""What is said about chunks. Pure."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from sllmd.core.errors import ProtocolError

VERSION = 1
NONCE_BYTES = 16
TAG_BYTES = 16
MESSAGE_BYTES_MAX = 16 * 1024
"""Of any frame here: chunks themselves travel outside frames."""


class Kind(IntEnum):
    """What a frame is."""

    CHALLENGE = 64
    OPEN = 65
    OPENED = 66
    TICKET = 67
    TICKETED = 68
    READ = 69
    DATA = 70
    FAULT = 71


@dataclass(frozen=True, slots=True)
class Read:
    """A range of a checkpoint's file."""

    checkpoint: str
    """Its digest."""
    path: str
    offset_bytes: int
    size_bytes: int
    tagged: bool

    def to_wire(self) -> tuple[Any, ...]:
        """As a msgpack value."""
        return self.checkpoint, self.path, self.offset_bytes, self.size_bytes, self.tagged


def parse_read(value: Any, size_bytes_max: int) -> Read:
    """The inverse of ``Read.to_wire``; raises ProtocolError."""
    match value:
        case (str(checkpoint), str(path), int(offset), int(size), bool(tagged)) if (
            offset >= 0 and 0 < size <= size_bytes_max
        ):
            return Read(checkpoint, path, offset, size, tagged)
    raise ProtocolError(f"a request for a chunk that cannot be understood: {value!r:.120}")


@dataclass(frozen=True, slots=True)
class Ticket:
    """Leave to open plain connections; ``key`` was told over TLS."""

    ticket_id: str
    key: bytes
    port: int


def parse_ticket(value: Any) -> Ticket:
    """What a TICKETED carries; raises ProtocolError."""
    match value:
        case (str(ticket_id), bytes(key), int(port)) if len(key) == 32 and 0 < port < 65536:
            return Ticket(ticket_id, key, port)
    raise ProtocolError("a ticket that cannot be understood")


def opening_proof(key: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    """That the client holds the ticket's key."""
    return hmac.digest(key, b"open" + server_nonce + client_nonce, "sha256")


def connection_key(key: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    """What this one connection's tags are made with."""
    return hmac.digest(key, b"tags" + server_nonce + client_nonce, "sha256")

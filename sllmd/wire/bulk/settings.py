"""What an owner may decide about chunks between nodes. Pure."""

from __future__ import annotations

from typing import Literal

from pydantic import ByteSize, Field

from sllmd.core.frozen import Frozen
from sllmd.core.units import MIB, PositiveSeconds


class ChunkSettings(Frozen):
    """``[cluster.chunks]``: checkpoints from node to node."""

    connections_max: int = Field(default=64, ge=1, le=4096)
    """Served at once; each is a thread."""
    strangers_max: int = Field(default=16, ge=1)
    """Connections that have not shown who they are; further ones are hung up on at once."""
    handshake_timeout_seconds: PositiveSeconds = 5.0
    """For connecting, TLS, and showing who one is."""
    stall_timeout_seconds: PositiveSeconds = 10.0
    """A transfer without a byte for so long is given up, and another peer asked."""
    idle_timeout_seconds: PositiveSeconds = 10.0
    """A connection without a request for so long is closed: it holds a thread, and the copy that it read."""
    ticket_lifetime_seconds: PositiveSeconds = 60.0
    """Within which plain connections may be opened with a ticket."""
    tickets_max: int = Field(default=1024, ge=1)
    """Good at once; the oldest give way."""
    read_bytes_max: ByteSize = ByteSize(256 * MIB)
    """Asked for at once."""


class BulkSettings(ChunkSettings):
    """What client and server of chunks are told."""

    encryption: Literal["on", "off"] = "on"
    """See ``[cluster] chunk_encryption``."""

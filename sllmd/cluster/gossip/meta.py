"""What a node tells about itself besides its address: small, because it travels with every claim. Pure.

Load and cache contents are no part of it: those go to the leader as reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from sllmd.cluster.codec import Codec
from sllmd.core.errors import ConfigError, ProtocolError
from sllmd.core.ids import NodeId

META_BYTES_MAX = 512
"""Claims are told to every member many times over: 512 bytes let two or more share a packet."""


@dataclass(frozen=True, slots=True)
class Meta:
    """``address`` is where other nodes reach this one's control and data plane.

    ``epoch`` and ``leader`` are a hint for those who look for the leader, the highest epoch wins.
    """

    address: str
    version: str
    roles: tuple[str, ...] = ()
    epoch: int = 0
    leader: NodeId | None = None


_CODEC = Codec({1: Meta})


def pack_meta(meta: Meta) -> bytes:
    """Its bytes; ConfigError if they are more than ``META_BYTES_MAX``."""
    data = _CODEC.pack(meta)
    if len(data) > META_BYTES_MAX:
        raise ConfigError(
            f"what this node would tell about itself takes {len(data)} bytes, {META_BYTES_MAX} are allowed",
            hint="shorten its address or its list of roles",
        )
    return data


def unpack_meta(data: bytes) -> Meta:
    """The inverse; raises ProtocolError."""
    if len(data) > META_BYTES_MAX:
        raise ProtocolError(f"a meta of {len(data)} bytes is over the limit of {META_BYTES_MAX}")
    return cast("Meta", _CODEC.unpack(data))

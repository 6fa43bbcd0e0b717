"""What an owner may decide about connections between nodes. Pure."""

from __future__ import annotations

from typing import Self

from pydantic import ByteSize, Field, model_validator

from sllmd.core.frozen import Frozen
from sllmd.core.units import KIB, MIB, PositiveSeconds


class RpcSettings(Frozen):
    """``[cluster.rpc]``: calls between nodes."""

    frame_bytes_max: ByteSize = ByteSize(8 * MIB)
    """One message. Larger things travel as streams, or as chunks beside this channel."""
    connect_timeout_seconds: PositiveSeconds = 3.0
    """TCP, TLS and hello together. A node on the same network answers in milliseconds."""
    hello_timeout_seconds: PositiveSeconds = 5.0
    """A stranger that has not said who it is by then is hung up on."""
    strangers_max: int = Field(default=128, ge=1)
    """Connections that have not said who they are; further ones are hung up on at once."""
    connections_max: int = Field(default=8192, ge=1)
    """Connections that a listener holds; each is a descriptor and some 50 kB."""
    keepalive_seconds: PositiveSeconds = 5.0
    """A silent peer is asked for a sign of life so often."""
    dead_after_seconds: PositiveSeconds = 15.0
    """A peer that was silent for so long is hung up on: its machine died or its process is stopped. Shorter
    notices sooner, and hangs up on nodes that were merely busy."""
    unacked_seconds_max: PositiveSeconds = 4.0
    """A peer whose machine takes no bytes for so long is hung up on, and dialled anew: behind a partition TCP
    tries again ever more rarely, and would find out seconds after the network is well. A process that merely
    stands still does not count, as its kernel goes on taking bytes."""
    call_deadline_seconds: PositiveSeconds = 30.0
    """For an answer, where the caller names no deadline."""
    calls_max: int = Field(default=8192, ge=1)
    """Calls under way per connection and direction; a further one is refused as busy."""
    stream_window_bytes: ByteSize = ByteSize(64 * KIB)
    """What may be under way or unread of one stream before its source has to wait."""
    item_bytes_max: ByteSize = ByteSize(1 * MIB)
    """One item of a stream. An unread stream holds at most the window and one item."""
    output_wait_bytes: ByteSize = ByteSize(512 * KIB)
    """Answers and streams wait while so much waits for the peer's socket."""
    output_bytes_max: ByteSize = ByteSize(32 * MIB)
    """A peer that leaves so much unread is hung up on."""
    redial_seconds: PositiveSeconds = 0.1
    """Pause before an unreachable node is dialled again; doubles up to ``redial_max_seconds``."""
    redial_max_seconds: PositiveSeconds = 1.0
    """Longest such pause. Calls in between fail at once."""
    redial_refused_max_seconds: PositiveSeconds = 10.0
    """The same where somebody answers and will not talk to us: that passes seldom by itself."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.item_bytes_max * 2 > self.frame_bytes_max:
            raise ValueError("frame_bytes_max must be at least twice item_bytes_max")
        if self.frame_bytes_max * 2 > self.output_bytes_max:
            raise ValueError("output_bytes_max must be at least twice frame_bytes_max")
        if self.dead_after_seconds < 2 * self.keepalive_seconds:
            raise ValueError("dead_after_seconds must be at least twice keepalive_seconds")
        return self

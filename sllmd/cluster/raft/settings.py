"""What an owner may decide about agreement. Every limit has its reason. Pure."""

from __future__ import annotations

from typing import Self

from pydantic import ByteSize, Field, model_validator

from sllmd.core.frozen import Frozen
from sllmd.core.units import KIB, MIB, PositiveSeconds


class RaftSettings(Frozen):
    """``[cluster.raft]``: how fast a dead leader is replaced, and what may be under way at once."""

    heartbeat_seconds: PositiveSeconds = 0.1
    """How often an idle leader says that it is alive; several times within the shortest election time-out."""
    election_seconds_min: PositiveSeconds = 0.6
    """A follower that heard its leader within this time votes for nobody else (the vote lease), and a leader
    that heard no majority for this long gives up. Raise it on machines that stall."""
    election_seconds_max: PositiveSeconds = 1.2
    """Followers stand for election after a random time between min and max, so that one comes first."""
    late_seconds_max: PositiveSeconds = 0.25
    """A follower whose own timer fired later than this was stopped, not abandoned: it listens once more
    before it stands."""
    append_entries_max: int = Field(default=64, ge=1)
    """Entries in one message: enough to amortise it, few enough that a lost one is cheap."""
    append_bytes_max: ByteSize = ByteSize(256 * KIB)
    """Bytes of entries in one message; one larger entry still goes alone."""
    inflight_appends_max: int = Field(default=8, ge=1)
    """Unanswered appends per node. Without this limit every answer resends what is on its way already."""
    uncommitted_bytes_max: ByteSize = ByteSize(16 * MIB)
    """Proposals beyond it are refused as busy: without a majority the log would fill the memory."""
    chunk_bytes: ByteSize = ByteSize(512 * KIB)
    """Snapshots travel in parts of this size, one at a time per node."""
    trailing_entries: int = Field(default=5_000, ge=0)
    """Entries kept in memory behind a snapshot, so that a node that was away briefly needs no snapshot."""
    reads_max: int = Field(default=4_096, ge=1)
    """Linearizable reads that wait at once; more are refused as busy."""

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        if self.election_seconds_min < 3 * self.heartbeat_seconds:
            raise ValueError("election_seconds_min must be at least three heartbeat_seconds")
        if self.election_seconds_max < 1.2 * self.election_seconds_min:
            raise ValueError("election_seconds_max must exceed election_seconds_min by a fifth or more")
        return self

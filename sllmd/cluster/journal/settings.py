"""What an owner may decide about the journal. Pure."""

from __future__ import annotations

from pydantic import ByteSize, Field

from sllmd.core.frozen import Frozen
from sllmd.core.units import MIB


class JournalSettings(Frozen):
    """``[cluster.journal]``: how this node keeps the log of what the cluster agreed on, on its disk."""

    segment_bytes: ByteSize = ByteSize(16 * MIB)
    """A new segment is begun beyond this size. Smaller: space comes back sooner after a snapshot."""
    snapshot_entries: int = Field(default=10_000, ge=1)
    """A snapshot is taken after so many entries: a restart replays at most about this many."""
    snapshot_bytes: ByteSize = ByteSize(64 * MIB)
    """A snapshot is taken after so many bytes of entries, however few they are."""
    group_bytes_max: ByteSize = ByteSize(8 * MIB)
    """Writes that wait for the disk together are synced together, up to this much at once."""

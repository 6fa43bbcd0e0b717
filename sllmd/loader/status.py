"""What the DRAM tier says of itself. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sllmd.core.ids import Digest, ModelName

Stage = Literal["ssd→dram", "peer→dram", "remote→dram"]
LoadState = Literal["queued", "loading", "publishing", "loaded", "failed"]


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """A load at one moment."""

    stage: Stage
    state: LoadState
    """``publishing``: all bytes are in DRAM, and the copy on SSD is being made complete."""
    bytes_done: int
    bytes_total: int
    bytes_per_second: float
    eta_seconds: float | None
    """None: not known yet."""
    seconds: float = 0.0
    """Since its first byte was asked for; 0 while it waits for others."""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A load that is done."""

    stage: Stage
    size_bytes: int
    seconds: float
    """From the first chunk's start to the last one's end."""
    direct_io: bool
    """False: the filesystem refused O_DIRECT, and bytes went through the page cache."""
    verified: bool
    """Every chunk was compared with a checksum."""
    stored: bool
    """The bytes are on SSD now; False when a remote load could not write them there."""

    @property
    def bytes_per_second(self) -> float:
        """Over the whole load."""
        return self.size_bytes / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class CopyStats:
    """A checkpoint whose bytes are in DRAM, or on their way there."""

    digest: Digest
    name: ModelName
    size_bytes: int
    memory_bytes: int
    """Of whole slabs."""
    leases: int
    loaded: bool
    direct_io: bool
    """False: the filesystem refused O_DIRECT, and bytes went through the page cache."""
    idle_seconds: float
    """Since the last lease began or ended; 0 while leased."""


@dataclass(frozen=True, slots=True)
class DramStats:
    """The DRAM tier's books."""

    budget_bytes: int
    slab_bytes: int
    used_bytes: int
    """Slabs that hold copies, loading ones among them."""
    draining_bytes: int
    """Slabs of given-up loads whose last reads have not come back yet."""
    free_bytes: int
    """Slabs kept in reserve."""
    pinned_bytes: int
    pin_state: str
    """``pinned``, ``off``, or ``unpinned: `` and why."""
    page_state: str
    """``huge``, or ``small: `` and why."""
    copies: tuple[CopyStats, ...]
    bytes_per_second: dict[str, float]
    """Measured bandwidth of every hop that was used."""

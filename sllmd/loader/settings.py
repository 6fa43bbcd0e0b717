"""What an owner may decide about the DRAM tier and the ways into it."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import ByteSize, Field, TypeAdapter, field_validator, model_validator

from sllmd.core.frozen import Frozen
from sllmd.core.units import MIB, FiniteSeconds, PositiveSeconds
from sllmd.store.manifest import ALIGNMENT_BYTES

_SIZE = TypeAdapter(ByteSize)
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


class LoaderSettings(Frozen):
    """``[loader]``: how checkpoints reach memory, and how much of it they may fill."""

    dram_budget: str = "50%"
    """Memory that checkpoints may fill: a size, or a share of this machine's memory. Half leaves room for
    workers' caches and for everything else that runs here."""
    slab_bytes: ByteSize = ByteSize(64 * MIB)
    """Memory is taken and returned in slabs of this size. Larger: fewer descriptors; smaller: less lost to
    rounding at a model's end."""
    reserve_bytes: ByteSize = ByteSize(256 * MIB)
    """Free slabs kept for the next load, because fresh memory costs a first touch; more are returned to
    the system. 0: an evicted model leaves nothing behind."""
    headroom_bytes: ByteSize = ByteSize(512 * MIB)
    """Memory that must stay available on the machine when the tier grows, whatever the budget says."""
    pin: bool = True
    """Lock slabs into memory where RLIMIT_MEMLOCK allows, so that they are never swapped out."""
    verify: Literal["always", "never"] = "always"
    """Compare every chunk with its checksum as it passes: about 0.1 CPU-seconds per GB."""
    disk_threads: int = Field(default=4, ge=1, le=64)
    """Reads in flight per disk, over all loads. Four of 16 MiB saturate an NVMe; a hard disk wants 1."""
    http_connections: int = Field(default=8, ge=1, le=64)
    """Connections to one remote server, over all loads."""
    http_attempts: int = Field(default=5, ge=1, le=100)
    """How often one chunk is asked for before its source counts as unavailable."""
    http_redirects_max: int = Field(default=5, ge=0, le=20)
    """Redirects followed for one answer; hubs answer with one to their storage."""
    http_retry_seconds: FiniteSeconds = 0.25
    """Pause before the second attempt; doubles with each further one."""
    peer_connections: int = Field(default=4, ge=1, le=64)
    """Chunks under way from other nodes at once, over all loads; each is a thread and a connection."""
    stall_timeout_seconds: PositiveSeconds = 30.0
    """A load that makes no progress for this long is given up. Total time is never limited."""
    progress_interval_seconds: FiniteSeconds = 0.1
    """Least time between two progress events of one load: they wake the event loop."""
    close_timeout_seconds: FiniteSeconds = 10.0
    """How long stopping waits for reads in flight before it leaves them to the end of the process."""
    dram_bandwidth_max_bytes: ByteSize = ByteSize(0)
    """Bytes per second from memory to each device; 0: no cap. A CPU maps memory, and waits all the same."""
    disk_bandwidth_max_bytes: ByteSize = ByteSize(0)
    """Bytes per second read from one disk; 0: no cap."""
    remote_bandwidth_max_bytes: ByteSize = ByteSize(0)
    """Bytes per second received from one remote server; 0: no cap."""
    peer_bandwidth_max_bytes: ByteSize = ByteSize(0)
    """Bytes per second received from other nodes; 0: no cap."""
    disk_bandwidth_guess_bytes: ByteSize = ByteSize(1_000_000_000)
    """Bytes per second assumed of a disk in estimates until it has been measured."""
    peer_bandwidth_guess_bytes: ByteSize = ByteSize(900_000_000)
    """Bytes per second assumed of other nodes in estimates until it has been measured: 10 Gbit/s, and a
    little less than of a disk here, which has no disk there before it."""
    remote_bandwidth_guess_bytes: ByteSize = ByteSize(100_000_000)
    """Bytes per second assumed of a remote server in estimates until it has been measured."""

    @field_validator("dram_budget", mode="before")
    @classmethod
    def _check_budget(cls, value: object) -> str:
        text = str(value).strip()
        percent = _PERCENT.fullmatch(text)
        if percent is None:
            _SIZE.validate_python(text)
        elif not 0 < float(percent[1]) <= 100:
            raise ValueError("a share of memory lies above 0 % and is at most 100 %")
        return text

    @model_validator(mode="after")
    def _check_slab(self) -> Self:
        if self.slab_bytes < ALIGNMENT_BYTES or self.slab_bytes % ALIGNMENT_BYTES:
            raise ValueError(f"slab_bytes must be a multiple of {ALIGNMENT_BYTES}")
        return self

    def budget_bytes(self, memory_bytes: int) -> int:
        """The budget on a machine with ``memory_bytes``."""
        percent = _PERCENT.fullmatch(self.dram_budget)
        if percent is not None:
            return int(memory_bytes * float(percent[1]) / 100)
        return int(_SIZE.validate_python(self.dram_budget))

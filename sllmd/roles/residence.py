"""A replica as the agent keeps it: what it takes, where it is, what it is doing.

Owns: the record; ``agent`` and ``residences`` alone write to it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from sllmd.core.ids import ReplicaId
from sllmd.engine.protocol import EngineOptions
from sllmd.engine.replica import Replica
from sllmd.loader.tier import Lease
from sllmd.roles.admission import Need, ReplicaState, ReplicaView
from sllmd.store.checkpoint import Checkpoint


@dataclass(slots=True, eq=False)
class Residence:
    """A replica and what the agent knows of it. Times are monotonic seconds."""

    checkpoint: Checkpoint
    need: Need
    devices: tuple[str, ...]
    options: EngineOptions
    tier: str
    """Where the bytes lay when it was started."""
    estimate_seconds: float
    started_seconds: float
    keep_alive_seconds: float
    replica_id: ReplicaId
    state: ReplicaState = ReplicaState.STARTING
    running: int = 0
    last_used_seconds: float = 0.0
    resident_since_seconds: float = 0.0
    stages_seconds: dict[str, float] = field(default_factory=dict)
    lease: Lease | None = None
    replica: Replica | None = None
    task: asyncio.Task[None] | None = None
    startup_seconds: float = 0.0
    """What its last start took, from the decision to serving; woken or loaded."""
    expiry: asyncio.TimerHandle | None = None
    unloading: bool = False
    """An operator wants it gone; otherwise one that closes for somebody may serve again."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def view(self, worth_seconds: float) -> ReplicaView:
        """As ``admission`` sees it."""
        return ReplicaView(
            replica_id=self.replica_id,
            model=self.need.model,
            digest=self.need.digest,
            devices=self.devices,
            device_bytes=self.need.device_bytes,
            dram_bytes=self.need.dram_bytes,
            state=self.state,
            running=self.running,
            rows_max=self.options.batch_max,
            last_used_seconds=self.last_used_seconds,
            resident_since_seconds=self.resident_since_seconds,
            startup_seconds=self.startup_seconds,
            worth_seconds=worth_seconds,
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """A replica to run one generation on."""

    residence: Residence
    replica: Replica
    cold: bool
    """Whether it had to be started for this request."""

"""The picture of the cluster that decisions look at. Pure.

Owns: the records and the indexes between them. Only ``keeper.Keeper`` writes here; policies read.
Invariants: ``DeviceView.free_bytes`` is capacity less what replicas that hold it take; a node is in
``dram_holders[m]`` exactly if ``m`` is in its ``dram`` (likewise ``ssd``); ``version`` grows with each
change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sllmd.core.ids import GenerationId, ModelName, NodeId, ReplicaId
from sllmd.scheduler.arrivals import Arrivals
from sllmd.scheduler.decisions import Source
from sllmd.scheduler.facts import Model, Tier
from sllmd.scheduler.learning import Errors, Learned, Line, Mean
from sllmd.scheduler.settings import SchedulerSettings

START_SECONDS, WAKE_SECONDS = 0.1, 0.03
"""Assumed from a load's last byte to a ready replica, new and woken, until one was measured."""
TOKEN_SECONDS = 0.03
GENERATION_TOKENS = 128.0
RECOMPUTE = (0.0005, 0.05)
"""Assumed pace, length and cost per token and in all of a recomputation, until some were measured."""


class ReplicaState(StrEnum):
    """A replica's life as the scheduler sees it. PROMISED: decided, and its devices are not yet free."""

    PROMISED = "promised"
    LOADING = "loading"
    READY = "ready"
    CLOSING = "closing"
    ASLEEP = "asleep"


@dataclass(slots=True, eq=False)
class Path:
    """An I/O path that serves one load after the other: when each is expected to leave it."""

    ends: dict[ReplicaId, float] = field(default_factory=dict)
    until: float = -math.inf
    """When the last one leaves."""


@dataclass(slots=True, eq=False)
class DeviceView:
    """A device, the link that leads to it, and who holds it."""

    capacity_bytes: int
    free_bytes: int
    whole: bool = False
    """It takes one replica at a time, whatever its size: a place on a CPU."""
    link: Path = field(default_factory=Path)
    held: dict[ReplicaId, int] = field(default_factory=dict)
    """Who holds it, and with which of its parts."""

    def taken_bytes(self, part_bytes: int) -> int:
        """What a replica takes of it, whose part here has that size."""
        return self.capacity_bytes if self.whole else part_bytes


@dataclass(slots=True, eq=False)
class GenerationView:
    """A running generation."""

    generation: GenerationId
    tokens_in: int
    tokens_out: int
    priority: int
    began_seconds: float
    heard_seconds: float


@dataclass(slots=True, eq=False)
class ReplicaView:
    """A replica, meant or real."""

    replica: ReplicaId
    model: Model
    node: NodeId
    devices: tuple[int, ...]
    state: ReplicaState
    since_seconds: float
    """When it came into its state."""
    used_seconds: float
    """When a generation last began or ended."""
    generations: dict[GenerationId, GenerationView] = field(default_factory=dict)
    reserved_rows: int = 0
    """Rows kept for generations on their way here."""
    load: LoadView | None = None

    @property
    def free_rows(self) -> int:
        """Rows that nobody has or was promised."""
        return self.model.rows - len(self.generations) - self.reserved_rows


@dataclass(slots=True, eq=False)
class LoadView:
    """A load that was promised or runs."""

    source: Source
    begin_seconds: float
    """When its first byte is expected to come, or came."""
    end_seconds: float
    """When the replica is expected to be ready."""
    estimate_seconds: float
    """First byte to ready, as estimated when it began: what its error is measured against."""
    paths: tuple[Path, ...]
    wakes: bool = False
    """A sleeping process takes the bytes: its start is learned apart."""


@dataclass(slots=True, eq=False)
class NodeView:
    """A node."""

    node: NodeId
    name: str
    labels: Mapping[str, str]
    devices: tuple[DeviceView, ...]
    dram_bytes: int
    draining: bool
    sequence: int
    heard_seconds: float
    to_device: Learned
    """Bytes per second from DRAM to one device."""
    from_ssd: Learned
    from_remote: Learned
    from_peer: Learned
    """From any peer that was not measured by itself."""
    start: Learned
    """Seconds from a load's last byte to a ready replica."""
    wake: Learned
    """The same, of a replica that slept."""
    trusted: bool = True
    """False: it contradicted itself, and an inventory is on its way."""
    dram: dict[ModelName, int] = field(default_factory=dict)
    dram_used_bytes: int = 0
    ssd: dict[ModelName, int] = field(default_factory=dict)
    replicas: dict[ReplicaId, ReplicaView] = field(default_factory=dict)
    pairs: dict[NodeId, Learned] = field(default_factory=dict)
    """Bytes per second from single peers."""
    ssd_path: Path = field(default_factory=Path)
    in_path: Path = field(default_factory=Path)
    out_path: Path = field(default_factory=Path)
    free: list[int] = field(default_factory=list)
    """Free bytes of the devices, most first."""
    capacities: list[int] = field(default_factory=list)
    """Capacities of the devices, most first."""
    running: int = 0
    """Generations on all of its replicas."""


@dataclass(slots=True, eq=False)
class ModelView:
    """What is known of a model across the cluster."""

    model: Model
    replicas: dict[ReplicaId, ReplicaView] = field(default_factory=dict)
    dram_holders: dict[NodeId, NodeView] = field(default_factory=dict)
    ssd_holders: dict[NodeId, NodeView] = field(default_factory=dict)
    arrivals: Arrivals = field(default_factory=Arrivals)
    token_seconds: Learned = field(default_factory=lambda: Learned(TOKEN_SECONDS))
    generation_seconds: Mean = field(default_factory=lambda: Mean(TOKEN_SECONDS * GENERATION_TOKENS))
    waiting: int = 0
    """Requests that wait for a row of it."""
    recompute: Line = field(default_factory=lambda: Line(*RECOMPUTE))
    recompute_at: dict[NodeId, Line] = field(default_factory=dict)

    @property
    def holders(self) -> set[NodeId]:
        """Nodes where it has a replica that does not sleep: a node has one at most."""
        return {each.node for each in self.replicas.values() if each.state is not ReplicaState.ASLEEP}


@dataclass(slots=True, eq=False)
class ClusterView:
    """All of it."""

    settings: SchedulerSettings
    version: int = 0
    nodes: dict[NodeId, NodeView] = field(default_factory=dict)
    models: dict[ModelName, ModelView] = field(default_factory=dict)
    replicas: dict[ReplicaId, ReplicaView] = field(default_factory=dict)
    errors: dict[Tier, Errors] = field(default_factory=lambda: {tier: Errors() for tier in Tier})
    heard_seconds: float = -math.inf
    """When any node was last heard."""
    rest_seconds: Callable[[GenerationView, float], float] | None = None
    """Set only by an oracle, which knows what is left of a generation."""

    def is_stale(self, node: NodeView) -> bool:
        """Whether others have outlived it without a word. The clock alone proves nothing: when it jumps, or
        when this very process stood still, all nodes look old alike."""
        return self.heard_seconds - node.heard_seconds > self.settings.stale_after

"""What nodes tell the scheduler: an inventory when they come, then changes in sequence. Pure.

A report has a number; one that is older than what is known is dropped, and a gap or a contradiction makes the
keeper ask for an inventory, which replaces all that was known of the node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sllmd.core.ids import GenerationId, ModelName, NodeId, ReplicaId
from sllmd.scheduler.decisions import Source
from sllmd.scheduler.facts import Tier


@dataclass(frozen=True, slots=True)
class GenerationFacts:
    """A running generation. ``tokens_out`` is as of the report."""

    generation: GenerationId
    tokens_in: int
    tokens_out: int = 0
    priority: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaFacts:
    """A replica in an inventory."""

    replica: ReplicaId
    model: ModelName
    devices: tuple[int, ...]
    state: str
    """``loading``, ``ready`` or ``asleep``."""
    generations: tuple[GenerationFacts, ...] = ()
    ready_in_seconds: float = 0.0
    """What the node expects of one that is loading."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """All of a node."""

    node: NodeId
    sequence: int
    name: str
    device_bytes: tuple[int, ...]
    """What replicas may take, per device."""
    dram_bytes: int
    labels: Mapping[str, str] = field(default_factory=dict)
    draining: bool = False
    dram: tuple[ModelName, ...] = ()
    ssd: tuple[ModelName, ...] = ()
    replicas: tuple[ReplicaFacts, ...] = ()
    whole: bool = False
    """Whether each device takes one replica at a time, whatever its size."""
    bytes_per_second: Mapping[str, float] = field(default_factory=dict)
    """Per hop: ``dram`` (to a device), ``ssd``, ``peer``, ``remote``."""


@dataclass(frozen=True, slots=True)
class LoadBegan:
    """A replica is being brought up: what was promised, or what the node began by itself."""

    replica: ReplicaId
    model: ModelName
    devices: tuple[int, ...]
    source: Source


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """``loaded_bytes`` have come in the ``seconds`` since the first one."""

    replica: ReplicaId
    loaded_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LoadEnded:
    """The replica is ready. ``bytes_seconds``: from the first byte to the last; ``start_seconds``: the
    rest."""

    replica: ReplicaId
    bytes_seconds: float
    start_seconds: float


@dataclass(frozen=True, slots=True)
class ReplicaGone:
    """It ended, failed, or never came to be."""

    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class ReplicaAsleep:
    """It left its devices; process and DRAM copy are kept."""

    replica: ReplicaId
    model: ModelName


@dataclass(frozen=True, slots=True)
class GenerationBegan:
    """A replica took a generation."""

    replica: ReplicaId
    facts: GenerationFacts


@dataclass(frozen=True, slots=True)
class GenerationTokens:
    """How far it is."""

    replica: ReplicaId
    generation: GenerationId
    tokens_out: int


@dataclass(frozen=True, slots=True)
class GenerationEnded:
    """It finished, was cancelled, or moved away."""

    replica: ReplicaId
    generation: GenerationId
    tokens_out: int = 0
    """0: it did not finish here, and nothing is learned from it."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """``tokens`` of a model were computed from nothing in ``seconds``: what a migration costs, too."""

    model: ModelName
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CopyGained:
    """A tier of the node holds the whole model now."""

    tier: Tier
    model: ModelName


@dataclass(frozen=True, slots=True)
class CopyLost:
    """A tier no longer holds it."""

    tier: Tier
    model: ModelName


@dataclass(frozen=True, slots=True)
class DrainingSet:
    """The node takes nothing new, or does again."""

    draining: bool


Change = (
    LoadBegan
    | LoadProgress
    | LoadEnded
    | ReplicaGone
    | ReplicaAsleep
    | GenerationBegan
    | GenerationTokens
    | GenerationEnded
    | Prefilled
    | CopyGained
    | CopyLost
    | DrainingSet
)


@dataclass(frozen=True, slots=True)
class Report:
    """Changes since the report before; none: the node lives."""

    node: NodeId
    sequence: int
    changes: tuple[Change, ...] = ()

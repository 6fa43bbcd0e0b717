"""What a node tells the leader about itself: replicas, checkpoints, devices. Pure.

A report is full, or holds only the parts that changed since the version that the leader has. A leader that
has another version than a report builds on asks for a full one: nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from sllmd.cluster.codec import Codec
from sllmd.core.ids import Digest, GenerationId, ModelName

HeldTier = Literal["dram", "ssd", "files"]
"""``files``: only the manifest and the small files are there, the weights somewhere else."""


@dataclass(frozen=True, slots=True)
class ReplicaFact:
    """A loaded copy, or one on its way up or down."""

    model: ModelName
    digest: Digest
    state: str
    """As ``admission.ReplicaState``."""
    running: int
    waiting: int
    rows_max: int


@dataclass(frozen=True, slots=True)
class CheckpointFact:
    """A checkpoint that the node has, and what every node shall know of it without having it."""

    digest: Digest
    tier: str
    """A ``HeldTier``."""
    size_bytes: int
    architecture: str
    context_tokens: int
    partitions: int
    created_seconds: int
    """Unix seconds of its import."""
    adopted: bool = False
    """It came from another node: a copy that nobody here asked to keep."""


@dataclass(frozen=True, slots=True)
class DeviceFact:
    """A device; ``free_bytes`` None: only ``replicas_max`` bounds it."""

    name: str
    memory_bytes: int | None
    free_bytes: int | None
    replicas: int
    replicas_max: int


@dataclass(frozen=True, slots=True)
class GenerationDetail:
    """A generation that runs, or ran until lately."""

    generation: GenerationId
    tokens_in: int
    tokens_out: int
    prefill_tokens: int = 0
    """Prompt tokens that were computed here, without those that a cache had."""
    prefill_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ReplicaDetail:
    """How a replica's load goes or went, and what runs on it."""

    model: ModelName
    digest: Digest
    devices: tuple[str, ...]
    source: str
    """The tier that its bytes came from."""
    loaded_bytes: int
    load_seconds: float
    """Since the first byte, while it loads."""
    bytes_seconds: float
    """From the first byte to the last, once it serves."""
    start_seconds: float
    """From then until it could serve."""
    generations: tuple[GenerationDetail, ...]


@dataclass(frozen=True, slots=True)
class Detail:
    """What the leader's estimates need, and no other node."""

    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    dram_bytes: int = 0
    """What the DRAM tier may fill."""
    rows: int = 1
    """Generations that a replica runs together, unless its model says otherwise."""
    cache_bytes: int = 0
    """Reserved on a device for a replica's key-value cache."""
    rates: dict[str, float] = field(default_factory=dict)
    """Bytes per second of each hop, measured or assumed: ``dram`` (to a device), ``ssd``, ``peer``,
    ``remote``."""
    replicas: tuple[ReplicaDetail, ...] = ()
    ended: tuple[GenerationDetail, ...] = ()
    """Generations that finished lately."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything a node tells. ``chunk_port`` 0: it gives no chunks to other nodes."""

    replicas: tuple[ReplicaFact, ...] = ()
    checkpoints: tuple[CheckpointFact, ...] = ()
    devices: tuple[DeviceFact, ...] = ()
    draining: bool = False
    chunk_port: int = 0
    detail: Detail = Detail()
    """For the leader alone: it is not told on."""
    drained_since_seconds: float = 0.0
    """Unix time, by that node's clock, since when nothing runs there while it drains; 0: something does."""

    def told(self) -> Inventory:
        """As other nodes hear of it."""
        return replace(self, detail=_NO_DETAIL)


@dataclass(frozen=True, slots=True)
class Report:
    """``boot`` tells one run of a node from the next. A part that is None has not changed since ``base``."""

    boot: str
    version: int
    base: int
    """0: it is full."""
    replicas: tuple[ReplicaFact, ...] | None
    checkpoints: tuple[CheckpointFact, ...] | None
    devices: tuple[DeviceFact, ...] | None
    draining: bool | None
    chunk_port: int | None
    detail: Detail | None = None
    drained_since_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Versioned:
    """A node's inventory as the leader has it."""

    boot: str
    version: int
    inventory: Inventory


_NO_DETAIL = Detail()
_PARTS = tuple(field.name for field in fields(Inventory))
CODEC = Codec({1: Inventory, 2: Report})


def full_report(boot: str, version: int, inventory: Inventory) -> Report:
    """Everything."""
    return Report(boot, version, 0, **{part: getattr(inventory, part) for part in _PARTS})


def delta_report(boot: str, version: int, base: int, before: Inventory, after: Inventory) -> Report:
    """What changed from ``before``, which the leader has as version ``base``."""
    changed = {
        part: getattr(after, part) if getattr(after, part) != getattr(before, part) else None
        for part in _PARTS
    }
    return Report(boot, version, base, **changed)


def merge(known: Versioned | None, report: Report) -> Versioned | None:
    """The node's inventory after ``report``; None: it builds on what is not known, a full one is needed."""
    given = {part: getattr(report, part) for part in _PARTS if getattr(report, part) is not None}
    if known is not None and known.boot == report.boot and report.version < known.version:
        return known  # it was overtaken on its way
    if report.base == 0:
        return Versioned(report.boot, report.version, Inventory(**given))
    if known is None or (known.boot, known.version) != (report.boot, report.base):
        return None
    return Versioned(report.boot, report.version, replace(known.inventory, **given))


def is_urgent(before: Inventory, after: Inventory) -> bool:
    """Whether others should know at once: anything but how busy replicas and devices are."""
    return _structure(before) != _structure(after)


def _structure(inventory: Inventory) -> tuple[object, ...]:
    replicas = tuple((fact.model, fact.digest, fact.state) for fact in inventory.replicas)
    drain = inventory.draining, inventory.drained_since_seconds
    return replicas, inventory.checkpoints, drain, inventory.chunk_port

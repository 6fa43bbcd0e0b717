"""What can be decided for a request, and the candidates that travel with it. Pure.

``startup_seconds`` is what the request is expected to wait from now; ``harm_seconds`` what others are
expected to lose. ``score`` adds them with the weight of ``[scheduler] harm_weight``: the smallest one
wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from sllmd.core.ids import ModelName, NodeId, ReplicaId
from sllmd.scheduler.facts import Tier


class Way(StrEnum):
    """How a candidate would get the request going."""

    USE = "use"
    WAIT_ROW = "wait for a row"
    WAIT_LOAD = "wait for a load"
    WAKE = "wake"
    LOAD = "load"
    CLEAR = "make room and load"
    WAIT_ROOM = "wait for room"
    NONE = "not possible"


class Candidate(NamedTuple):
    """One way that was compared; a tuple, as a decision makes one per node."""

    way: Way
    node: NodeId
    source: str
    """Tier the bytes would come from; empty where none move."""
    queue_seconds: float
    load_seconds: float
    free_seconds: float
    """Until the devices are free."""
    startup_seconds: float
    score: float
    why: str
    """Why it lost, or that it was chosen."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a load's bytes come from; ``peer`` only for Tier.PEER."""

    tier: Tier
    peer: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Evict:
    """An idle replica goes; its bytes stay in DRAM if they are there."""

    replica: ReplicaId
    model: ModelName


@dataclass(frozen=True, slots=True)
class Move:
    """A busy replica's generations go on elsewhere, then it goes, too."""

    replica: ReplicaId
    model: ModelName
    target_node: NodeId
    target_replica: ReplicaId | None
    """None: the model is loaded at the target first."""
    target_devices: tuple[int, ...]
    target_source: Source | None
    seconds: float
    """Until the last generation has left."""
    pause_seconds: float
    """How long each stands still."""


Victim = Evict | Move


@dataclass(frozen=True, slots=True)
class Use:
    """Run it on this replica now."""

    replica: ReplicaId
    node: NodeId


@dataclass(frozen=True, slots=True)
class Load:
    """Start a replica there. ``victims`` go first; ``wakes`` names a sleeping replica to wake instead."""

    node: NodeId
    devices: tuple[int, ...]
    source: Source
    startup_seconds: float
    bytes_seconds: float
    """The load alone, without queue and victims."""
    victims: tuple[Victim, ...] = ()
    wakes: ReplicaId | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to start for it: ask again when something has changed."""

    reason: str
    eta_seconds: float
    """From now; infinite if nobody can tell. What a Retry-After is made of."""
    closing: ReplicaId | None = None
    """The replica whose end it waits for."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """No node that it may run on could hold it, even empty."""

    missing: str


Decision = Use | Load | Wait | Refuse


@dataclass(frozen=True, slots=True)
class Placement:
    """A decision and all that was compared for it, best first."""

    model: ModelName
    decision: Decision
    candidates: tuple[Candidate, ...]
    view_version: int

"""The words of a decision: what a model needs, what its owner allows, who asks. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

from sllmd.core.ids import ModelName, RequestId


class Tier(StrEnum):
    """Where a load's bytes come from. A device is where they go, never a source."""

    DRAM = "dram"
    SSD = "ssd"
    PEER = "peer"
    REMOTE = "remote"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a deployment's owner asks for."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that a node must have."""
    nodes: tuple[str, ...] = ()
    """Patterns of node names; none: any node."""
    priority: int = 0
    """A request displaces nobody of a higher one."""
    min_replicas: int = 0
    max_replicas: int = 64
    target_running: float = 0.0
    """Generations per replica to scale for; 0: all of its rows."""
    keep_alive_seconds: float | None = None
    """None: about the time that a load takes."""

    def allow(self, name: str, labels: Mapping[str, str]) -> bool:
        """Whether a node of this name and with these labels may have the model."""
        if self.nodes and not any(fnmatchcase(name, pattern) for pattern in self.nodes):
            return False
        return all(labels.get(key) == value for key, value in self.labels.items())


@dataclass(frozen=True, slots=True)
class Model:
    """What one replica takes. One entry per device in ``load_bytes`` and ``device_bytes``."""

    name: ModelName
    load_bytes: tuple[int, ...]
    """Weights to bring to each device."""
    device_bytes: tuple[int, ...]
    """Weights and key-value cache on each device."""
    rows: int = 1
    """Generations that run together."""
    remote: bool = True
    """Whether there is a remote source to fetch it from."""
    rules: Rules = Rules()
    needs: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """``device_bytes``, most first."""
    total_bytes: int = field(init=False, repr=False, compare=False)
    """Bytes of the checkpoint."""
    part_bytes: int = field(init=False, repr=False, compare=False)
    """Most that one device's link has to carry."""

    def __post_init__(self) -> None:
        if not self.load_bytes or len(self.load_bytes) != len(self.device_bytes):
            raise ValueError("a model has one load size and one device size per device")
        object.__setattr__(self, "needs", tuple(sorted(self.device_bytes, reverse=True)))
        object.__setattr__(self, "total_bytes", sum(self.load_bytes))
        object.__setattr__(self, "part_bytes", max(self.load_bytes))

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return len(self.device_bytes)


@dataclass(frozen=True, slots=True)
class Request:
    """Somebody needs a replica of ``model``."""

    request_id: RequestId
    model: ModelName
    arrived_seconds: float
    key: str = ""
    """Whose request it is, for fairness."""
    priority: int = 0
    """On top of the deployment's."""

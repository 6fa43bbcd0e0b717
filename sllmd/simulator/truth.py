"""What is really there: replicas, requests and paths, as no scheduler sees them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from sllmd.core.ids import GenerationId, NodeId, ReplicaId
from sllmd.scheduler.decisions import Source
from sllmd.scheduler.facts import Model, Request, Tier
from sllmd.simulator.hardware import Hardware, Pace
from sllmd.simulator.traces import Arrival


@dataclass(slots=True, eq=False)
class Job:
    """A request and how far it is."""

    arrival: Arrival
    request: Request
    generation: GenerationId
    startup_seconds: float = 0.0
    waiting_since: float = 0.0
    tokens_done: int = 0
    """Tokens it had when it last began somewhere."""
    began_seconds: float = 0.0
    """When its tokens last began to flow (prefill over)."""
    turn: int = 0
    """Counts its changes of place: an end that was planned for an older one does not happen."""
    replica: Replica | None = None
    cold: bool = False
    preempted: int = 0
    end_seconds: float = 0.0

    def tokens_at(self, now: float, pace: Pace) -> int:
        """Tokens that it has by now."""
        grown = max(now - self.began_seconds, 0.0) / pace.token_seconds if self.replica else 0.0
        return min(self.tokens_done + int(grown), self.arrival.tokens_out)


@dataclass(slots=True, eq=False)
class Replica:
    """A replica."""

    replica: ReplicaId
    model: Model
    pace: Pace
    node: NodeId
    devices: tuple[int, ...]
    source: Source
    wakes: bool = False
    ready: bool = False
    closing: bool = False
    asleep: bool = False
    gone: bool = False
    jobs: dict[GenerationId, Job] = field(default_factory=dict)
    awaits: set[ReplicaId] = field(default_factory=set)
    """Victims that hold its devices."""
    frees: Replica | None = None
    """Whose devices it holds, if it is a victim."""
    movers: list[Replica] = field(default_factory=list)
    """Replicas whose generations come here once it is ready."""


class Paths:
    """When each real path is free, and how long a load really takes on it."""

    def __init__(self, hardware: Hardware, chance: random.Random) -> None:
        self.hardware = hardware
        self._chance = chance
        self._free_at: dict[tuple[NodeId, str], float] = {}

    def book(self, replica: Replica, now: float) -> tuple[float, float]:
        """Begin and end of its bytes; the paths are taken until then."""
        names = self._names(replica)
        begin = max([now, *(self._free_at.get(name, 0.0) for name in names)])
        seconds = self._seconds(replica) * self._chance.lognormvariate(0.0, self.hardware.noise)
        for name in names:
            self._free_at[name] = begin + seconds
        return begin, begin + seconds

    def ssd_idle(self, node: NodeId, now: float) -> bool:
        """Whether nobody reads from that node's SSD."""
        return self._free_at.get((node, "ssd"), 0.0) <= now

    def _names(self, replica: Replica) -> list[tuple[NodeId, str]]:
        names = [(replica.node, f"link {index}") for index in replica.devices]
        tier, peer = replica.source.tier, replica.source.peer
        if tier is Tier.SSD:
            names.append((replica.node, "ssd"))
        elif tier is not Tier.DRAM:
            names.append((replica.node, "in"))
        if peer is not None:
            names.append((peer, "out"))
        return names

    def _seconds(self, replica: Replica) -> float:
        hardware, model = self.hardware, replica.model
        to_device = model.part_bytes / hardware.to_device
        if replica.source.tier is Tier.DRAM:
            return to_device
        rate = hardware.from_ssd if replica.source.tier is Tier.SSD else hardware.network
        return max(to_device, model.total_bytes / rate)

"""Who may start on this node's devices. Pure: one function over a picture of the node.

The rules, in the order ``decide`` tries them:

0. what the node could not hold even when empty is refused, naming the resource;
1. a replica that serves and has a row free is used;
2. a replica that starts, or whose rows are all taken, is waited for;
3. a replica that is on its way out or to sleep is waited for (its memory is not free yet);
4. devices with room: start there, which wakes the model's replica if one sleeps;
5. idle replicas whose going makes room: no more than needed, those first whose going is expected to cost
   least; they sleep where devices are wanted, and end where memory is. Who sleeps goes first then;
6. busy replicas that had their minimum residency take no new work, so that nobody starves; wait;
7. wait: somebody's minimum residency has to pass first. It is never shorter than bringing the replica took:
   of models that push each other out in turns, none spends more time on its way than there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from sllmd.core.ids import Digest, ModelName, ReplicaId
from sllmd.core.units import format_bytes


class ReplicaState(StrEnum):
    """A replica's life. ``closing`` serves what it has and takes nothing new. ``asleep`` holds no device: its
    process and its DRAM are kept. ``dozing`` is on its way there."""

    STARTING = "starting"
    SERVING = "serving"
    CLOSING = "closing"
    DOZING = "dozing"
    ASLEEP = "asleep"
    STOPPING = "stopping"


_LEAVING = frozenset({ReplicaState.CLOSING, ReplicaState.DOZING, ReplicaState.STOPPING})
OFF_DEVICE = frozenset({ReplicaState.DOZING, ReplicaState.ASLEEP, ReplicaState.STOPPING})
"""These take no place on a device; the memory of all but one that sleeps still counts."""


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Capacity of a device. ``memory_bytes`` None: only ``replicas_max`` bounds it."""

    name: str
    replicas_max: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica as the decision sees it. Times are monotonic seconds."""

    replica_id: ReplicaId
    model: ModelName
    digest: Digest
    devices: tuple[str, ...]
    device_bytes: tuple[int, ...]
    """What it takes on each of ``devices``."""
    dram_bytes: int
    """Slabs its lease holds."""
    state: ReplicaState
    running: int
    rows_max: int
    """How many it runs together."""
    last_used_seconds: float
    resident_since_seconds: float
    startup_seconds: float = 0.0
    """What bringing it took."""
    worth_seconds: float = 0.0
    """What its going is expected to cost: chance of use times the time to bring it back."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """Everything ``decide`` looks at."""

    devices: tuple[DeviceView, ...]
    replicas: tuple[ReplicaView, ...]
    dram_budget_bytes: int
    dram_lifted_bytes: int
    """Held by loads into DRAM that no replica asked for."""
    residency_min_seconds: float
    now_seconds: float


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes: bytes on each of its devices, slabs in DRAM."""

    model: ModelName
    digest: Digest
    """Models of one digest share their slabs."""
    device_bytes: tuple[int, ...]
    dram_bytes: int

    @property
    def key(self) -> tuple[ModelName, Digest]:
        """What a replica serves: this name with these bytes."""
        return self.model, self.digest


@dataclass(frozen=True, slots=True)
class Use:
    """Run it on this replica."""

    replica_id: ReplicaId


@dataclass(frozen=True, slots=True)
class Start:
    """Start a replica on these devices."""

    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evict:
    """Stop these idle replicas and ask again: memory comes back later, a place on the device at once."""

    replica_ids: tuple[ReplicaId, ...]
    sleep: bool = False
    """It is enough that they sleep: what is missing is on devices."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to start now; ask again when something changed."""

    reason: str
    for_room: bool = False
    """Whether it waits for others to go; if so, nobody who came later may start before it."""
    close: tuple[ReplicaId, ...] = ()
    """These take no new work from now on."""
    until_seconds: float | None = None
    """Ask again then at the latest."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The node cannot hold it even when empty."""

    missing: str


Decision = Use | Start | Evict | Wait | Refuse


def decide(need: Need, view: NodeView) -> Decision:
    """What to do for a request whose model needs ``need``; numbers as in the module's docstring."""
    missing = _missing_when_empty(need, view)  # 0
    if missing:
        return Refuse(missing)
    for replica in view.replicas:
        if (replica.model, replica.digest) != need.key or replica.state is ReplicaState.ASLEEP:
            continue
        if replica.state is ReplicaState.SERVING and replica.running < replica.rows_max:  # 1
            return Use(replica.replica_id)
        if replica.state is ReplicaState.SERVING:  # 2
            return Wait("all rows of the model are taken")
        if replica.state is ReplicaState.STARTING:  # 2
            return Wait("the model is starting")
        if replica.state is ReplicaState.DOZING:  # 3
            return Wait("the model's replica is going to sleep")
        return Wait("the model's last replica is stopping")  # 3
    devices = _room(need, view, view.replicas)
    if devices:  # 4
        return Start(devices)
    victims = _fewest_victims(need, view, [r for r in view.replicas if _is_idle(r, need)])
    if victims:  # 5
        return Evict(victims, sleep=_sleep_is_enough(need, view, victims))
    return _wait_for_room(need, view)


def _wait_for_room(need: Need, view: NodeView) -> Wait:
    if any(replica.state in _LEAVING for replica in view.replicas):
        return Wait("another model is making room", for_room=True)
    serving = [r for r in view.replicas if r.state is ReplicaState.SERVING]
    asleep = [r for r in view.replicas if r.state is ReplicaState.ASLEEP and r.digest != need.digest]
    residents = [r for r in serving if _residency_end(r, view) <= view.now_seconds] + asleep
    victims = _fewest_victims(need, view, residents)
    if victims:  # 6
        return Wait("another model finishes its running requests first", for_room=True, close=victims)
    if not serving:  # 7
        return Wait("loads into DRAM hold the memory", for_room=True)
    ends = [_residency_end(replica, view) for replica in serving]
    later = [end for end in ends if end > view.now_seconds]
    return Wait("another model has only just started", for_room=True, until_seconds=min(later, default=None))


def _residency_end(replica: ReplicaView, view: NodeView) -> float:
    return replica.resident_since_seconds + max(view.residency_min_seconds, replica.startup_seconds)


def _is_idle(replica: ReplicaView, need: Need) -> bool:
    if replica.state is ReplicaState.ASLEEP:
        return replica.digest != need.digest
    return replica.state is ReplicaState.SERVING and replica.running == 0


def _sleep_is_enough(need: Need, view: NodeView, victims: Sequence[ReplicaId]) -> bool:
    def after(replica: ReplicaView) -> ReplicaView:
        return replace(replica, state=ReplicaState.ASLEEP) if replica.replica_id in victims else replica

    return _room(need, view, map(after, view.replicas)) is not None


def _missing_when_empty(need: Need, view: NodeView) -> str | None:
    if need.dram_bytes > view.dram_budget_bytes:
        return (
            f"the model needs {format_bytes(need.dram_bytes)} of DRAM tier"
            f" and the budget is {format_bytes(view.dram_budget_bytes)}"
        )
    if len(need.device_bytes) > len(view.devices):
        return (
            f"the model is spread over {len(need.device_bytes)} devices and this node has"
            f" {len(view.devices)}: import it again with --replace --partitions {len(view.devices)}"
        )
    if not _places(need, view, ()):
        most = max(device.memory_bytes or 0 for device in view.devices)
        return (
            f"the model needs {format_bytes(max(need.device_bytes))} on a device"
            f" and the largest offers {format_bytes(most)}"
        )
    return None


def _room(need: Need, view: NodeView, replicas: Iterable[ReplicaView]) -> tuple[str, ...] | None:
    """Devices for each partition with ``replicas`` in place; None: no room there or in DRAM."""
    replicas = list(replicas)
    slabs = {replica.digest: replica.dram_bytes for replica in replicas} | {need.digest: need.dram_bytes}
    if sum(slabs.values()) + view.dram_lifted_bytes > view.dram_budget_bytes:
        return None
    return _places(need, view, replicas)


def _places(need: Need, view: NodeView, replicas: Sequence[ReplicaView]) -> tuple[str, ...] | None:
    """Devices for each partition, the emptiest first; None: some partition fits nowhere."""
    free = [device for device in view.devices if _tenants(device, replicas) < device.replicas_max]
    free.sort(key=lambda device: (_tenants(device, replicas), -_free_bytes(device, replicas)))
    chosen: list[str] = []
    for size_bytes in need.device_bytes:
        fits = (d for d in free if d.name not in chosen and size_bytes <= _free_bytes(d, replicas))
        device = next(fits, None)
        if device is None:
            return None
        chosen.append(device.name)
    return tuple(chosen)


def _tenants(device: DeviceView, replicas: Sequence[ReplicaView]) -> int:
    """How many run there. One that is stopping or dozing runs no more; its memory still counts until it is
    reaped or asleep."""
    here = (replica for replica in replicas if device.name in replica.devices)
    return sum(replica.state not in OFF_DEVICE for replica in here)


def _free_bytes(device: DeviceView, replicas: Sequence[ReplicaView]) -> float:
    if device.memory_bytes is None:
        return float("inf")
    taken = sum(
        size_bytes
        for replica in replicas
        for name, size_bytes in zip(replica.devices, replica.device_bytes, strict=True)
        if name == device.name and replica.state is not ReplicaState.ASLEEP
    )
    return device.memory_bytes - taken


def _staying(replica: ReplicaView) -> tuple[bool, float, float]:
    return replica.state is not ReplicaState.ASLEEP, replica.worth_seconds, replica.last_used_seconds


def _fewest_victims(need: Need, view: NodeView, candidates: Sequence[ReplicaView]) -> tuple[ReplicaId, ...]:
    """Candidates whose going makes room, none that would not have to go: those that sleep, then those worth
    least, of equals the least recently used."""
    going: list[ReplicaView] = []
    for candidate in sorted(candidates, key=_staying):
        going.append(candidate)
        if _room(need, view, [r for r in view.replicas if r not in going]):
            break
    else:
        return ()
    for replica in list(going):
        kept = [r for r in view.replicas if r not in going or r is replica]
        if len(going) > 1 and _room(need, view, kept):
            going.remove(replica)
    return tuple(replica.replica_id for replica in going)

"""What this node tells an operator about itself: the bodies of ``/sllmd/v1``. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, ConfigDict

from sllmd.roles.decided import Decided

Tier = Literal["device", "dram", "ssd", "peer", "remote", "nowhere"]
MemberState = Literal["alive", "suspect", "dead", "left"]
MemberRole = Literal["voter", "learner", "client"]


class _Status(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModelCard(_Status):
    """A model of the catalogue and where it is just now."""

    name: str
    aliases: tuple[str, ...]
    created: int
    """Unix seconds of its import."""
    architecture: str
    size_bytes: int
    digest: str
    kind: str
    context_tokens: int = 0
    """The longest prompt and completion; 0: not known, see ``problem``."""
    partitions: int = 0
    tier: Tier = "ssd"
    state: str = "cold"
    """``cold``, ``starting``, ``serving``, ``closing``, ``dozing``, ``asleep``, ``stopping``; ``missing``: no
    node that is here has it."""
    startup_estimate_seconds: float = 0.0
    """0 when it serves."""
    keep_alive_seconds: float | None = None
    """How long an idle replica stays ready on this node; -1: for ever, None: it was never here."""
    problem: str | None = None
    """Why it cannot be served as it is, with the remedy."""


def told_seconds(seconds: float) -> float:
    """As everywhere in JSON, -1 is for ever."""
    return -1.0 if seconds == float("inf") else seconds


class ReplicaStatus(_Status):
    """A loaded copy, or one on its way up or down."""

    replica_id: str
    model: str
    state: str
    devices: tuple[str, ...]
    tier: str
    """Where its bytes are, or the hop they are on: ``device``, ``ssd→dram``."""
    size_bytes: int
    loaded_bytes: int
    bytes_per_second: float
    running: int
    waiting: int
    keep_alive_seconds: float
    """How long it stays ready when idle, and as long again asleep; -1: for ever."""
    expires_in_seconds: float | None
    """Until it sleeps, or ends if it does; None: busy, or kept for ever."""
    pid: int | None = None
    rss_bytes: int | None = None


class CopyStatus(_Status):
    """A checkpoint in the DRAM tier."""

    model: str
    digest: str
    size_bytes: int
    memory_bytes: int
    """Of whole slabs."""
    leases: int
    loaded: bool
    """False while its bytes are on their way."""
    direct_io: bool
    """False: the filesystem refused O_DIRECT, and bytes went through the page cache."""
    idle_seconds: float


class LoadedStatus(_Status):
    """What one node has loaded."""

    node: str
    """Its name."""
    replicas: tuple[ReplicaStatus, ...]
    copies: tuple[CopyStatus, ...]


class CacheStatus(_Status):
    """The DRAM tier's books."""

    budget_bytes: int
    used_bytes: int
    reserve_bytes: int
    """Free slabs that are kept for the next load."""
    draining_bytes: int
    """Slabs of given-up loads whose last reads have not come back yet."""
    pinned: str
    """``pinned``, ``off``, or ``unpinned: `` and why."""
    pages: str
    """``huge``, or ``small: `` and why."""
    copies: tuple[CopyStatus, ...]
    bandwidth_bytes_per_second: dict[str, float]
    """Measured, per hop."""


class ProcessStatus(_Status):
    """A process of this daemon."""

    role: str
    """``daemon``, ``zygote``, ``waiting`` or the id of the replica that it runs."""
    pid: int
    rss_bytes: int
    """With what it shares: a model's pages in the DRAM tier, the zygote's libraries."""
    anonymous_bytes: int
    """Without files and shared memory. In a worker, most of it is still the zygote's."""
    model: str | None = None
    """Of the replica."""


class DeviceStatus(_Status):
    """A device and who is on it."""

    name: str
    description: str
    memory_bytes: int | None
    replicas: int


class MemberStatus(_Status):
    """A member of the cluster, as the node that answers sees it."""

    name: str
    id: str
    address: str
    """Where other nodes call it."""
    gossip_address: str | None
    state: MemberState
    since: float | None
    """Unix seconds, by the answering node's clock; None: not heard of since that node was started."""
    leader: bool = False
    role: MemberRole
    """A voter and a learner keep the log; a client follows it."""
    version: str | None
    suspected_by: tuple[str, ...] = ()
    """Names of the members that got no answer from it."""
    roles: tuple[str, ...] = ()
    """What it does, in its own words."""
    name_conflict: bool = False
    """Another node that is here has the same name."""
    is_me: bool = False
    admitted: bool = False
    """Whether it stands in the catalogue."""
    cordoned: bool = False
    """It is to take no work until somebody says otherwise."""
    draining: bool = False
    """It takes no new work, and something still runs there."""
    drained_since: float | None = None
    """Unix seconds, by its own clock, since when it takes no new work and nothing runs there."""
    devices: tuple[str, ...] = ()
    replicas: int = 0
    running: int = 0
    """Generations on its replicas."""


class ControlStatus(_Status):
    """Who agrees, and how new what this node knows is."""

    store: str
    """``raft``: the nodes themselves; ``etcd``."""
    position: int
    """Of the newest agreed command that this node knows."""
    age_seconds: float | None
    """Since this node last heard from whoever decides; None: not yet."""
    voters: tuple[str, ...]
    voters_alive: int
    voters_may_fail: int
    """Before nothing can be changed any more; warm models are served in any case."""
    majority_dead: tuple[str, ...] = ()
    """The dead voters, where they are so many that nothing can be agreed until some come back."""


class ClusterStatus(_Status):
    """The cluster as the node that answers sees it."""

    members: tuple[MemberStatus, ...]
    leader: str | None
    leader_id: str | None
    epoch: int
    cluster_id: str
    control: ControlStatus


class ClusterSummary(_Status):
    """The cluster in a node's status."""

    cluster_id: str
    node_id: str
    leader: str | None
    leads: bool
    """Whether this node leads, and may give orders."""
    epoch: int
    members: dict[str, int]
    """How many, by state."""
    control: ControlStatus
    degraded: tuple[str, ...]
    """What is wrong, in plain words; empty: nothing."""


class NodeRecord(_Status):
    """A node as the cluster admitted it."""

    name: str
    id: str
    address: str
    certificate_fingerprint: str
    devices: dict[str, int]
    """Bytes that replicas may take, by device."""
    labels: dict[str, str]
    cordoned: bool
    revision: int
    """The change that made it so."""


class NodeRecords(_Status):
    """All of them, as of ``revision``."""

    nodes: tuple[NodeRecord, ...]
    revision: int


class DeploymentRecord(_Status):
    """A model that the cluster serves, under its name."""

    name: str
    digest: str
    source: str
    aliases: tuple[str, ...]
    keep_alive_seconds: float | None
    min_replicas: int
    max_replicas: int
    placement: dict[str, str]
    """Labels that a node must have."""
    target_running: int
    """Generations on a replica beyond which there shall be one more; 0: as many as it runs together."""
    revision: int


class DeploymentRecords(_Status):
    """All of them, as of ``revision``."""

    deployments: tuple[DeploymentRecord, ...]
    revision: int


class KeyRecord(_Status):
    """An API key; its secret is kept nowhere."""

    id: str
    scopes: tuple[str, ...]
    source: Literal["cluster", "file"]
    """``file``: of the answering node alone."""


class KeyRecords(_Status):
    """Those that the answering node accepts."""

    keys: tuple[KeyRecord, ...]


class DrainStep(_Status):
    """How far a node's drain has come; with a move that is over, or without."""

    node: str
    status: Literal["draining", "drained", "timeout"]
    """``timeout``: something still runs, and goes on."""
    request_id: str = ""
    """Of the generation that moved; empty: this step tells of none."""
    model: str = ""
    result: str = ""
    """``done``, ``failed``, ``called_off`` (it ended, or was about to), ``stays`` (no other place)."""
    target: str = ""
    pause_ms: float | None = None
    reason: str = ""
    moved: int
    """Generations that have moved so far."""
    left: int
    """Generations that run here."""
    seconds: float


class LeaveReport(_Status):
    """What a node's leaving came to."""

    node: str
    left: bool
    cut_short: int
    """Generations that outlasted the drain."""


class MovesStatus(_Status):
    """Changes of place of the generations that this node routes, since it was started."""

    under_way: int
    moved: int
    """As planned."""
    resumed: int
    """After their source was lost."""
    called_off: int
    failed: int
    rounds: int
    """Times that targets of planned moves computed what was known."""
    tokens: int
    """Prompt and output that new places went on from."""
    pause_ms_max: float
    """The longest between the last token of an old place and the first of the new one."""


class MirrorStatus(_Status):
    """Streams that outlive the node that they lead to: its own here, and the copies that it keeps."""

    copies: int
    """Streams of other nodes that it has a copy of."""
    copies_bytes: int
    alone: int
    """Times that there was nobody to keep a copy of new tokens; this and the next since it was started."""
    late: int
    """Times that tokens went on before the keeper of their copy had answered."""
    refused: int
    """Streams that a keeper had no room for."""
    resumed: int
    """Streams that this node took over from another."""


class NodeStatus(_Status):
    """The whole node at a glance."""

    node: str
    version: str
    state: Literal["ready", "draining", "drained"]
    """``draining``: it takes no new work, and something still runs here; ``drained``: nothing does."""
    drained_since: float | None
    """Unix seconds; None: it is not drained."""
    uptime_seconds: float
    listen: tuple[str, ...]
    devices: tuple[DeviceStatus, ...]
    models: int
    replicas: tuple[ReplicaStatus, ...]
    requests_running: int
    requests_waiting: int
    cache: CacheStatus
    store_directory: str
    processes: tuple[ProcessStatus, ...]
    worker_error: str | None
    """Why the last start of a worker failed; None after one that succeeded."""
    moves: MovesStatus
    mirror: MirrorStatus
    cluster: ClusterSummary | None = None
    """None while this node has not joined yet."""


class Readiness(_Status):
    """Whether a balancer should send requests here."""

    status: Literal["ready", "not ready"]
    state: Literal["ready", "draining", "drained"]
    reason: str | None
    """Why not."""


class LoadStatus(_Status):
    """One step of a load, for a progress bar; the last one has ``status`` ``ready`` or ``error``."""

    model: str
    status: Literal["loading", "ready", "error"]
    stage: str
    current_bytes: int
    total_bytes: int
    bytes_per_second: float
    eta_seconds: float | None = None
    seconds: float = 0.0
    message: str | None = None
    code: str | None = None
    """What kind of error, in the words of the API; with ``status`` ``error``."""


class UnloadReport(_Status):
    """What an unload gave back."""

    model: str
    device_replicas: int
    dram_bytes: int


class WayStatus(_Status):
    """A way to a replica that was compared. None: not possible, or not looked at closely."""

    way: str
    node: str
    """Id."""
    source: str
    queue_seconds: float
    load_seconds: float
    free_seconds: float
    """Until its devices are free."""
    total_seconds: float | None
    why: str
    """Why it lost, or that it was chosen."""


class PlanStatus(_Status):
    """Where a model starts soonest, as the leader decided."""

    model: str
    node: str
    """Id; empty: nowhere, for ``reason``."""
    reason: str
    total_seconds: float | None
    """Estimated, from the decision until the model can serve; None: nobody can tell."""
    decide_seconds: float
    leader: str
    """Id."""
    epoch: int
    ways: tuple[WayStatus, ...]
    """The best first."""
    refusals: tuple[str, ...]
    """Of nodes that were ordered before, and did not take it."""

    @classmethod
    def of(cls, decided: Decided) -> PlanStatus:
        """As people and programs see it."""
        ways = tuple(
            WayStatus(**(asdict(each) | {"total_seconds": _finite(each.total_seconds)}))
            for each in decided.ways
        )
        return cls(**(asdict(decided) | {"ways": ways, "total_seconds": _finite(decided.total_seconds)}))


class MoveStatus(_Status):
    """A change of a generation's place, or a try at one."""

    kind: Literal["move", "failover"]
    """``failover``: its source was lost."""
    reason: str
    """Why it was begun, or how the source was lost."""
    source: str
    """Id of the node that it left; empty: a node without a cluster."""
    target: str
    result: Literal["running", "done", "failed", "called_off"] = "running"
    outcome: str | None = None
    """Why it did not come about."""
    rounds: int = 0
    """Times that the target computed what was known, before the switch."""
    tokens: int = 0
    """Prompt and output that the target went on from."""
    pause_ms: float | None = None
    """Between the last token of the old place and the first of the new one."""
    seconds: float = 0.0
    """From its beginning to the new place's first token, or to its end."""


class MovedStatus(_Status):
    """A generation that somebody ordered to move, and how that went."""

    request_id: str
    generation_id: str
    model: str
    move: MoveStatus


class RequestStatus(_Status):
    """A request, running or recent: where its time went."""

    request_id: str
    generation_id: str
    model: str
    state: str
    """``queued``, ``loading``, ``prefill``, ``decode``, ``finished``, ``cancelled``, ``failed``."""
    cold: bool
    tier: str
    node: str
    """The id of the node that runs it; empty: not known yet, or a node without a cluster."""
    queue_ms: float
    load_ms: float
    load_estimate_ms: float
    stages_ms: dict[str, float]
    prefill_ms: float
    decode_ms: float
    total_ms: float
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None
    error: str | None
    decision: PlanStatus | None = None
    """Why it ran there, where the leader was asked."""
    hops: int = 0
    """Changes of place."""
    moves: tuple[MoveStatus, ...] = ()
    """The latest of them, and of what was tried."""


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None

"""Settings of this room: how long things wait, rest and stay. Seconds unless the name says otherwise."""

from __future__ import annotations

from typing import Literal

from pydantic import ByteSize, Field

from sllmd.core.frozen import Frozen
from sllmd.core.units import MIB, FiniteSeconds, PositiveSeconds, Seconds


class ServingSettings(Frozen):
    """``[serving]``: admission to this node's devices."""

    queue_max_per_model: int = Field(default=256, ge=0)
    """Requests that may wait for one model beyond its batch; more get 503 and an honest Retry-After."""
    queue_timeout: FiniteSeconds = Field(default=300.0, lt=600)
    """Longest wait for a model to start; below the 600 s after which official clients give up."""
    residency_min: FiniteSeconds = 2.0
    """How long a replica stays before another model may push it out, so that two hot models do not
    spend their time evicting each other."""
    keep_alive: Seconds | None = None
    """How long an idle replica stays ready before it sleeps, and as long again before it ends; -1: for ever,
    0: ends at once. Models and requests may differ. Unset: some times what loading it anew would
    take; how many, and the bounds of it, ``[scheduler]`` says."""
    asleep_max: int = Field(default=4, ge=0)
    """Replicas that may sleep at a time: each is a process that holds its weights in DRAM. 0: none sleeps."""
    drain_timeout: FiniteSeconds = 30.0
    """How long a stopping daemon lets running requests finish; below the unit's TimeoutStopSec."""
    recent_requests_max: int = Field(default=256, ge=1)
    """Finished requests that ``sllmd explain`` still knows."""


class RoutingSettings(Frozen):
    """``[routing]``: how nodes learn what the others have, and whom they ask."""

    report_interval: PositiveSeconds = 1.0
    """How often a node tells the leader how busy it is. What comes and goes is told at once."""
    full_report_interval: PositiveSeconds = 30.0
    """How often it tells everything, whatever the leader has of it."""
    ask_timeout: PositiveSeconds = 0.8
    """How long a new leader waits for the nodes' inventories before it tells of what it knows: a dead one
    must not delay the others."""
    table_interval: PositiveSeconds = 0.05
    """Least time between two changes of the table that a node is told: what comes together is told so."""
    load_interval: PositiveSeconds = 1.0
    """How often nodes are told how busy the others are; a hundredth of it for each node, if that is more."""
    leader_wait: FiniteSeconds = 5.0
    """How long a request for a cold model waits for the next leader when the last one went, before the node
    that took it starts it on its own devices. Longer than an election, or a model starts on two nodes."""
    candidates_max: int = Field(default=3, ge=1, le=64)
    """Nodes that are asked to run one request, one after the other, before it fails."""
    avoid: FiniteSeconds = 2.0
    """How long a node that could not be reached is asked last."""


class MirrorSettings(Frozen):
    """``[mirror]``: streams that outlive their client's connection, and the node that it led to."""

    wait: FiniteSeconds = 0.005
    """Longest that tokens wait for the node that keeps a copy of their stream: a step or less. Without a
    copy, they go on, and what they can be resumed from is a little older."""
    copies_max: int = Field(default=4096, ge=0)
    """Streams of other nodes of which this one keeps a copy."""
    bytes_max: ByteSize = ByteSize(64 * MIB)
    """Bytes that the copies may take: a token takes 24, a prompt four for each of its tokens."""
    kept: PositiveSeconds = 300.0
    """How long a stream can be resumed after its last token."""
    grace: FiniteSeconds = 20.0
    """How long a stream that can be resumed goes on when its client's connection breaks."""
    streams_max: int = Field(default=1024, ge=0)
    """Streams of this node that can be resumed; one more is served as any other."""
    ask_timeout: PositiveSeconds = 1.0
    """For a node to say whether it has a stream that somebody resumes: one that hangs must not delay it."""


class DeviceSettings(Frozen):
    """``[devices]``: what this node runs models on."""

    backend: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: GPUs if there are any, else the CPU with a warning."""
    cpu_devices: int = Field(default=1, ge=1, le=64)
    """Virtual CPU devices; more than one to try models spread over partitions."""
    replicas_max: int = Field(default=4, ge=1)
    """Replicas on one device at a time."""
    memory_fraction: float = Field(default=0.92, gt=0, le=1)
    """Share of a GPU's memory that replicas may take; the rest is the driver's and the allocator's."""
    kv_cache_fraction: float = Field(default=0.2, ge=0, lt=1)
    """Share of a GPU's memory reserved for one replica's key-value cache."""


class ModelSettings(Frozen):
    """``[models."name"]``: what differs for one model."""

    source: str | None = None
    """Imported under this name at start when it is not in the store yet: a directory, file or URL."""
    aliases: tuple[str, ...] = ()
    keep_alive: Seconds | None = None
    priority: int = Field(default=0, ge=-6, le=6)
    """Its requests' turns among those that wait on a node: each step counts twice as many."""
    replicas_min: int = Field(default=0, ge=0)
    """Copies that the cluster keeps loaded."""
    replicas_max: int = Field(default=16, ge=1)
    """Copies that the cluster may have loaded at a time, each on a node of its own."""
    running_target: int = Field(default=0, ge=0)
    """Generations on each copy beyond which the cluster loads one more; 0: as many as its batch takes. Fewer:
    each goes faster, and more devices are taken."""
    preload: Literal["none", "dram", "device"] = "none"
    """Tier that the checkpoint is lifted to when the daemon starts."""
    batch_max: int | None = Field(default=None, ge=1)
    context_tokens_max: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=0)
    dtype: str | None = None

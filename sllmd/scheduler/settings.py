"""What the decisions weigh, and how far they search. Pure."""

from __future__ import annotations

from pydantic import Field

from sllmd.core.frozen import Frozen
from sllmd.core.units import FiniteSeconds, PositiveSeconds


class SchedulerSettings(Frozen):
    """``[scheduler]``: placement, scaling, and what leaves a tier."""

    residency_min: FiniteSeconds = 2.0
    """How long a replica stays before another model may push it out, so that two hot models do not evict
    each other in turns."""
    harm_weight: float = Field(default=0.5, ge=0)
    """What a second that others are expected to lose counts beside one that the request waits. 0: only the
    request's own time counts, as in the paper; more keeps what is likely to be used again."""
    stale_after: PositiveSeconds = 10.0
    """A node that others have outlived by this long without a report gets nothing new."""
    evict_estimate: FiniteSeconds = 0.05
    """Time from stopping an idle replica to its memory being free."""
    victim_sets_max: int = Field(default=256, ge=1)
    """Sets of victims that one decision tries for a model over several devices: bounds its time."""
    search_nodes_max: int = Field(default=24, ge=1)
    """Nodes whose victims are looked at, quickest load first: bounds the time of a decision."""
    targets_max: int = Field(default=8, ge=1)
    """Nodes with room that are compared as the new home of a displaced generation."""
    moved_models_max: int = Field(default=24, ge=0)
    """Models for whose displaced generations one decision looks for a new home: bounds its time."""
    peers_max: int = Field(default=4, ge=0)
    """Peers compared as sources of one load."""
    bandwidth_max_bytes: dict[str, float] = Field(default_factory=dict)
    """Cap of a hop (``dram``, ``ssd``, ``peer``, ``remote``) in bytes per second; estimates respect it."""
    keep_alive_loads: float = Field(default=8.0, gt=0)
    """Keep-alive in load times, where nobody sets one: after that an idle replica sleeps, and the leader lets
    replicas go where fewer would have been enough."""
    keep_alive_min: FiniteSeconds = 30.0
    """Shortest keep-alive that is derived from the load time: a person thinks for so long between two
    questions."""
    keep_alive_max: FiniteSeconds = 600.0
    """Longest keep-alive that is derived from the load time."""
    scale_down_delay: FiniteSeconds = 30.0
    """How long fewer replicas must have been enough before one goes."""
    use_horizon: PositiveSeconds = 60.0
    """How far ahead the chance of use looks when something is evicted or fetched ahead."""
    prefetch: bool = True
    """Whether nodes lift models from SSD into DRAM before anybody asks: where the disk idles, and memory is
    free or holds what is less likely to be used."""
    prefetch_interval: PositiveSeconds = 5.0
    """How often the leader looks for a model to lift, one on each node. Chances change with the clock."""
    prefetch_chance_min: float = Field(default=0.5, gt=0, le=1)
    """A model is fetched one tier up if it is used within the horizon with at least this chance."""

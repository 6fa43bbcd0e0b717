"""What an owner may decide about gossip. Every limit has its reason. Pure."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from sllmd.core.frozen import Frozen
from sllmd.core.units import PositiveSeconds


class GossipSettings(Frozen):
    """``[cluster.gossip]``: how fast a death is noticed, and how much talk that may cost."""

    probe_seconds: PositiveSeconds = 1.0
    """One member is probed in this time. Half of it notices deaths twice as fast, at twice the idle cost."""
    probe_timeout_seconds: PositiveSeconds = 0.5
    """Without an answer by then, others are asked to probe. Above the worst round trip of the network."""
    indirect_probes: int = Field(default=3, ge=0, le=16)
    """How many others are asked. One may have our own bad link; three rarely all do."""
    suspicion_multiplier: float = Field(default=4.0, ge=1)
    """A suspect has at least this times log10(members) probe times to refute."""
    suspicion_max_multiplier: float = Field(default=6.0, ge=1)
    """And this times longer while nobody else confirms: then it is likely that the fault is ours."""
    health_max: int = Field(default=8, ge=0, le=64)
    """A node that fares badly itself probes up to this many times slower, and waits as much longer."""
    lag_seconds_max: PositiveSeconds = 0.1
    """A timer that fires later than this means that this node is busy: it trusts its doubts less."""
    late_seconds_max: PositiveSeconds = 0.5
    """A timer that fires later than this means that this node stood still: nobody is blamed for that time."""
    gossip_seconds: PositiveSeconds = 0.2
    """Pause between two rounds of news."""
    gossip_members: int = Field(default=3, ge=1, le=16)
    """Members told in each round."""
    retransmit_multiplier: int = Field(default=4, ge=1, le=16)
    """A piece of news is told this times log10(members) times, 3 times it at least. Less loses news."""
    news_max: int = Field(default=16_384, ge=64)
    """Pieces of news waiting to be told, one per member at most; the most often told goes first."""
    packet_bytes_max: int = Field(default=1_400, ge=576, le=65_000)
    """Largest datagram: what fits an Ethernet frame also inside a tunnel, so that none is fragmented."""
    exchange_seconds: PositiveSeconds = 30.0
    """Two members compare whole tables this often; log2(members / 32) times more rarely in large clusters."""
    exchange_members_max: int = Field(default=100_000, ge=2)
    """Members in one table. More is refused: it cannot be one of ours."""
    dead_ping_seconds: PositiveSeconds = 2.0
    """Members believed dead, and suspects, are pinged this often, so that a healed partition closes fast."""
    dead_pings: int = Field(default=3, ge=0, le=64)
    """How many of the dead, and of the suspects, at once: a cost that must not grow with their number."""
    gossip_to_dead_seconds: PositiveSeconds = 30.0
    """The dead are told news this much longer: among them that they are dead, which they may refute."""
    dead_kept_seconds: PositiveSeconds = 72 * 3600.0
    """A dead member is forgotten after this, and only then no longer pinged."""
    left_kept_seconds: PositiveSeconds = 3600.0
    """A member that left is forgotten after this: long enough for old claims about it to die out."""
    settle_seconds: PositiveSeconds = 30.0
    """A node younger than this gives way when another with its id is alive; an older one only to a lower
    address. The clone of a running node's directory thus never displaces the original."""
    relays_max: int = Field(default=1_024, ge=16)
    """Probes made for others at the same time."""
    leave_seconds_max: PositiveSeconds = 3.0
    """For the news of a departure to be told before the node goes anyway."""

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        if self.probe_timeout_seconds >= self.probe_seconds:
            raise ValueError("probe_timeout_seconds must be shorter than probe_seconds")
        return self

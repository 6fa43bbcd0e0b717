"""What an owner may decide about how this cluster agrees. Every limit has its reason. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from sllmd.core.frozen import Frozen
from sllmd.core.units import PositiveSeconds


def _number(value: object) -> object:
    """Flags and the environment say numbers as text, which a choice of numbers would not take."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class VoterSettings(Frozen):
    """``[cluster.voters]``: who keeps the log, and who of them votes."""

    count: Annotated[Literal[0, 1, 3, 5], BeforeValidator(_number)] = 0
    """0: one voter on one or two nodes, three on three or more, five on nine or more. More voters survive
    more deaths and make every commit slower."""
    standbys: int = Field(default=2, ge=0, le=16)
    """Nodes that keep the log without a vote, ready to take a dead voter's place."""
    lag_entries_max: int = Field(default=100, ge=1)
    """A standby this close behind has caught up, and may vote."""
    settle_seconds: PositiveSeconds = 10.0
    """A node must have been well for so long before it gets a vote: one that comes and goes does harm."""
    dead_seconds: PositiveSeconds = 60.0
    """A voter that was silent for so long is replaced. Shorter replaces nodes that merely restart."""
    spread_label: str = "rack"
    """Voters are spread over the values of this label, so that one rack's power is not a majority."""


class ControlSettings(Frozen):
    """``[cluster.control]``: how long to try, and how often to say something."""

    propose_seconds: PositiveSeconds = 10.0
    """A change that nobody answered by then fails. An election takes one or two seconds."""
    read_seconds: PositiveSeconds = 5.0
    """The same for a read of the newest state."""
    retry_seconds: PositiveSeconds = 0.05
    """Pause before something that was refused or lost on the way is sent again."""
    proposals_max: int = Field(default=8_192, ge=1)
    """Changes of this node's own that wait for an answer; more are refused as busy."""
    late_seconds_max: PositiveSeconds = 0.1
    """A timer that fires later than this was stopped with the whole process: messages that wait in the
    sockets are read before anybody is given up."""
    beat_seconds: PositiveSeconds = 1.0
    """How often a node without a log hears from whom it follows; three missed, and it asks another."""
    stale_seconds: PositiveSeconds = 5.0
    """A node without a log leaves one that heard of no leader for so long."""

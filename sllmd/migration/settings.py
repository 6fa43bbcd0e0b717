"""What an owner may decide about moves. Pure."""

from __future__ import annotations

from pydantic import Field

from sllmd.core.frozen import Frozen
from sllmd.core.units import FiniteSeconds, PositiveSeconds


class MigrationSettings(Frozen):
    """``[migration]``: how running generations change their place."""

    moves_max: int = Field(default=32, ge=1)
    """Moves of a router whose targets compute at a time; more wait, with a row of their targets."""
    moves_tokens_max: int = Field(default=4096, ge=1)
    """Tokens that they may have the targets compute all together; a longer one goes alone. What has moved
    waits behind the prompts of those that follow it: with more of them its client sees a longer pause."""
    rounds_max: int = Field(default=5, ge=1)
    """Rounds of one move: each makes the gap about as much shorter as prefill is faster than decoding."""
    gap_tokens: int = Field(default=4, ge=0)
    """Tokens that are computed as fast as one: with so few missing, the switch waits for no further round."""
    remaining_tokens_min: int = Field(default=4, ge=0)
    """A generation that may make no more tokens than these stays where it is."""
    move_timeout: PositiveSeconds = 600.0
    """For one move, from asking the target to the switch: a cold start of a big model may be in it."""
    attempts_max: int = Field(default=3, ge=1)
    """Times that a generation is resumed without any token having come of it: one that kills what
    runs it must not kill every replica."""
    failovers_max: int = Field(default=16, ge=1)
    """Times that one generation is resumed at all."""
    resume_timeout: FiniteSeconds = 30.0
    """How long places are tried anew for a generation that has lost its own, while all are busy or away."""
    resume_pause: PositiveSeconds = 0.2
    """Between two such tries."""
    stall_min: PositiveSeconds = 5.0
    """A source that sends nothing for so long may hang: the generation moves, if there is another place."""
    stall_gaps: float = Field(default=50.0, gt=1)
    """It is given this many times the longest pause between its tokens so far, if that is more."""
    silence_max: PositiveSeconds = 600.0
    """A source that sends nothing for so long, or for ``stall_gaps``, is given up, whether or not there
    is another place: its client gets tokens or an error. A generation that gives way in a full cache is
    silent for minutes until an older one ends; official clients wait no longer. A worker that hangs is found
    sooner."""
    first_token_max: PositiveSeconds = 600.0
    """The same from having a replica to its first token, a long prompt and a full cache before it."""

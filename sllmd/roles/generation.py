"""What the API asks of a router and what it gets back: text, not tokens; choices, not replicas. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sllmd.core.ids import RequestId
from sllmd.engine.protocol import FinishedEvent, FinishReason, Sampling, TokenEvent
from sllmd.roles.decided import Decided

Known = TokenEvent | FinishedEvent
"""What another router has seen of a generation already."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One choice of one prompt. ``prompt_ids`` are within the vocabulary and not empty."""

    request_id: RequestId
    model: str
    """A name or an alias."""
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    stop: tuple[str, ...] = ()
    digest: str | None = None
    """The checkpoint that ``prompt_ids`` were made for; None: whatever the name stands for."""
    keep_alive_seconds: float | None = None
    """How long the replica stays after its last request; None: the model's or the default setting."""
    skip_special_tokens: bool = True
    key: str = ""
    """See ``Work``."""
    known: tuple[Known, ...] = ()
    """Its events so far, where another router began it: its deltas begin with theirs."""

    def resumed(self, known: tuple[Known, ...]) -> GenerationRequest:
        """The same with what is known of it."""
        return replace(self, known=known)


@dataclass(frozen=True, slots=True)
class TextLogprob:
    """A token as a client sees it. ``raw`` are the token's own bytes, which may be part of a code point."""

    text: str
    raw: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a choice. The last one carries ``finish_reason``; ``text`` may be empty."""

    text: str
    tokens: tuple[TextLogprob, ...] = ()
    """Filled when logprobs were asked for: the tokens whose text this or an earlier delta completes."""
    token_count: int = 0
    """Output tokens this delta accounts for, special ones included."""
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Timing:
    """Where a request's time went; filled as it goes. Milliseconds of a monotonic clock."""

    queue_ms: float = 0.0
    load_ms: float = 0.0
    """From asking for a replica to having one; 0 when it was ready."""
    prefill_ms: float = 0.0
    cold: bool = False
    tier: str = "device"
    """Where the checkpoint lay when the request came: ``remote``, ``ssd``, ``dram``, ``device``."""
    stages: dict[str, float] = field(default_factory=dict)
    """Parts of ``load_ms`` by name, e.g. ``ssd→dram``, ``attach``."""
    decision: Decided | None = None
    """Why it runs there, where the leader was asked."""
    node: str = ""
    """The id of the node that runs it; empty: not known yet, or a node without a cluster."""


@dataclass(slots=True)
class Usage:
    """Token counts of one choice."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

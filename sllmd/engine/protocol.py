"""What an engine is, said in data: the state that moves, the events that come back, the interface.

An engine owns rows of running generations and advances all of them by one token per ``step``. Everything
else (``add``, ``cancel``, ``export``, ``prefill``) happens between steps, so a state is always consistent.
Two engines implement it (``transformer``, ``fake``); vLLM fits as a third, since nothing here names a
tensor. Pure: no torch, no clock, no IO.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

from sllmd.core.ids import GenerationId


class FinishReason(StrEnum):
    """Why a generation ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Neutral values switch a rule off.

    Draws are keyed by ``(seed, absolute output index)`` and carry no generator state, so that neither
    batch order nor a change of place changes them. Every request gets a seed at admission.
    """

    seed: int
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    """Report the chosen token's log probability and this many most likely ones; None: neither."""
    prompt_logprobs: int | None = None
    """The same for every prompt position after the first (``echo`` with ``logprobs``)."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the generation, the model's end-of-sequence ids among them unless they are ignored."""


@dataclass(slots=True)
class GenerationState:
    """All there is to know of a generation: a few kB, enough to start, resume or move it."""

    generation_id: GenerationId
    prompt_ids: list[int]
    sampling: Sampling
    output_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability of one token and of the most likely ones in its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token. ``index`` is absolute in the output; the last event carries ``finish_reason``.

    A token that ends the generation by being a stop id is an event like any other (it is counted);
    turning it into text is the router's business. A generation with ``max_tokens == 0`` ends with
    ``FinishedEvent`` instead.
    """

    generation_id: GenerationId
    index: int
    token_id: int
    finish_reason: FinishReason | None = None
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class PrefilledEvent:
    """The prompt is in the cache. ``reused_tokens`` of it were copied from a retained prefix."""

    generation_id: GenerationId
    prompt_tokens: int
    reused_tokens: int
    seconds: float
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """One per prompt token when asked for; the first is None: nothing predicts it."""


@dataclass(frozen=True, slots=True)
class FinishedEvent:
    """A generation ended without a further token (``max_tokens`` reached at admission)."""

    generation_id: GenerationId
    finish_reason: FinishReason


FailureKind = Literal["context", "request", "internal"]
"""Longer than the engine's context, asking for what there is not, or nothing the caller could change."""


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """A generation could not go on; the others did."""

    generation_id: GenerationId
    message: str
    kind: FailureKind = "internal"


EngineEvent = TokenEvent | PrefilledEvent | FinishedEvent | FailedEvent


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot between two steps."""

    running: int
    waiting: int
    cache_tokens_used: int
    cache_tokens_total: int
    steps: int
    prefill_tokens: int
    decode_tokens: int
    runner: str
    """Which forward runs: ``fake``, ``transformers``, ``fused``, ``prepacked``."""
    threads: int
    context_tokens: int
    """Longest prompt + completion, which memory may make less than the model says; 0: no limit."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the owner of a replica decides about its engine."""

    threads: int
    """Threads of one forward pass; 0: as many as there are cores for it."""
    dtype: str = "auto"
    """``auto`` keeps the checkpoint's; else ``bfloat16``, ``float16`` or ``float32``."""
    batch_max: int = 32
    """Rows that decode together; more wait."""
    cache_tokens: int = 0
    """Tokens the key-value cache holds over all rows; 0: batch_max x context, bounded by memory."""
    context_tokens_max: int = 0
    """Longest prompt + completion; 0: what the model says."""
    prefill_chunk_tokens: int = 256
    """Prompt tokens per step, so that running streams never wait long for a new prompt."""
    fast_path: bool = True
    """Allow the fused forward where the probe finds it equal."""


class Engine(Protocol):
    """Rows of generations, advanced together one token per step."""

    def add(self, state: GenerationState) -> None:
        """Take a generation: new, imported or resumed; ``output_ids`` are recomputed, not repeated."""

    def cancel(self, generation_id: GenerationId) -> None:
        """Forget a generation; no event of it follows. Unknown ids are ignored."""

    def export(self, generation_id: GenerationId, *, stop: bool) -> GenerationState | None:
        """The state as of the last step; with ``stop`` the generation leaves. None: not here."""

    def prefill(self, state: GenerationState) -> None:
        """Warm the cache for ``state`` without running it: a later ``add`` of it starts at once.

        A ``PrefilledEvent`` or a ``FailedEvent`` tells when it is done.
        """

    def step(self) -> list[EngineEvent]:
        """One prefill chunk at most, one token for every running row."""

    def has_work(self) -> bool:
        """Whether ``step`` would do anything: run rows, or go on preparing a faster forward."""

    def on_work(self, wake: Callable[[], None]) -> None:
        """Have ``wake`` called, from any thread, when ``has_work`` becomes true by itself."""

    def use_threads(self, threads: int) -> None:
        """Run further steps on so many threads."""

    def stats(self) -> EngineStats:
        """A snapshot."""

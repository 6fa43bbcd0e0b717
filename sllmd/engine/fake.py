"""The fake engine: deterministic tokens, simulated seconds, no weights. Pure.

It keeps every promise of ``protocol.Engine`` (chunked prefill, batches, resume, export) and can be told to
fail, so that everything above an engine is tested and simulated without one. It reads no clock: ``step``
says in ``step_seconds`` how long it would have taken, and whoever runs the loop waits that long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from zlib import crc32

from pydantic import Field

from sllmd.core.frozen import Frozen
from sllmd.core.ids import GenerationId
from sllmd.engine.protocol import (
    EngineEvent,
    EngineOptions,
    EngineStats,
    FailedEvent,
    FailureKind,
    FinishedEvent,
    FinishReason,
    GenerationState,
    PrefilledEvent,
    TokenEvent,
    TokenLogprob,
)
from sllmd.store.manifest import Manifest

WARM_PROMPTS_MAX = 16
"""Prompts whose prefix counts as cached; a handful shows reuse, and a bound keeps memory flat."""
_DEFAULT_VOCABULARY_SIZE = 256
_DEFAULT_CACHE_TOKENS = 65536
_STEP_PRIME = 2654435761


class FakeSettings(Frozen):
    """How the fake engine behaves; a checkpoint's config may override each under ``"fake"``."""

    token_seconds: float = Field(default=0.0, ge=0)
    """Simulated seconds of one decode step, whatever the batch."""
    prefill_token_seconds: float = Field(default=0.0, ge=0)
    """Simulated seconds of each prompt token."""
    build_seconds: float = Field(default=0.0, ge=0)
    """Simulated seconds from the bytes being there to being able to serve."""
    token_ids: tuple[int, int] | None = None
    """Draw tokens from this half-open range; None: the whole vocabulary."""
    stop_after_tokens: int | None = None
    """Draw a stop id at this output index (where the request has one); None: never."""
    build_error: str | None = None
    """Fail the build with this message."""
    fail_at_token: int | None = None
    """Fail a generation at this output index and go on with the others."""
    crash_at_token: int | None = None
    """Raise out of ``step`` at this output index, as a broken engine would."""

    def overridden_by(self, manifest: Manifest) -> FakeSettings:
        """These settings with what ``manifest.config["fake"]`` says instead."""
        return FakeSettings.model_validate({**self.model_dump(), **manifest.config.get("fake", {})})


@dataclass(slots=True)
class _Row:
    state: GenerationState
    cached_tokens: int = 0
    reused_tokens: int = 0
    prefill_seconds: float = 0.0
    only_prefill: bool = False
    fingerprint: int = field(init=False)

    def __post_init__(self) -> None:
        sampling = self.state.sampling
        drawn = sampling.seed if sampling.temperature > 0 else 0
        self.fingerprint = _fingerprint(self.state.prompt_ids) + drawn

    @property
    def wanted_tokens(self) -> int:
        return len(self.state.prompt_ids) + len(self.state.output_ids)

    @property
    def has_more(self) -> bool:
        """Whether it has a token to make."""
        return not self.only_prefill and len(self.state.output_ids) < self.state.sampling.max_tokens

    def generates(self, generation_id: GenerationId) -> bool:
        """Whether this is that generation, not only its prefill."""
        return self.state.generation_id == generation_id and not self.only_prefill


class FakeEngine:
    """An ``Engine`` whose token at output index i is a function of the prompt and i."""

    def __init__(
        self,
        options: EngineOptions,
        settings: FakeSettings,
        *,
        vocabulary_size: int = _DEFAULT_VOCABULARY_SIZE,
        context_tokens: int = 0,
    ) -> None:
        """``context_tokens``: where ``options`` say nothing; 0: no limit."""
        self.step_seconds = 0.0
        self._options = options
        self._settings = settings
        self._threads = max(1, options.threads)
        self._vocabulary_size = vocabulary_size
        self._context_tokens = options.context_tokens_max or context_tokens
        self._token_ids = settings.token_ids or (0, vocabulary_size)
        self._pending: list[EngineEvent] = []
        self._waiting: deque[_Row] = deque()
        self._running: dict[GenerationId, _Row] = {}
        self._warm: deque[list[int]] = deque(maxlen=WARM_PROMPTS_MAX)
        self._steps = self._prefill_tokens = self._decode_tokens = 0

    @classmethod
    def build(cls, manifest: Manifest, options: EngineOptions, settings: FakeSettings) -> FakeEngine:
        """The engine for ``manifest``; RuntimeError when ``build_error`` asks for one."""
        chosen = settings.overridden_by(manifest)
        if chosen.build_error is not None:
            raise RuntimeError(chosen.build_error)
        size = int(manifest.config.get("vocab_size", _DEFAULT_VOCABULARY_SIZE))
        context_tokens = int(manifest.config.get("max_position_embeddings", 0))
        return cls(options, chosen, vocabulary_size=size, context_tokens=context_tokens)

    def add(self, state: GenerationState) -> None:
        """Take a generation: new, imported or resumed. One that cannot run fails in the next step."""
        self._queue(self._row(state))

    def prefill(self, state: GenerationState) -> None:
        """Warm the cache for ``state``; a PrefilledEvent of its id says when it is done."""
        row = self._row(state)
        row.only_prefill = True
        self._queue(row)

    def cancel(self, generation_id: GenerationId) -> None:
        """Forget a generation; no event of it follows."""
        self._pending = [event for event in self._pending if event.generation_id != generation_id]
        self._running.pop(generation_id, None)
        self._waiting = deque(row for row in self._waiting if not row.generates(generation_id))

    def export(self, generation_id: GenerationId, *, stop: bool) -> GenerationState | None:
        """The state as of the last step; with ``stop`` the generation leaves."""
        state = self._find(generation_id)
        if state is None:
            return None
        if stop:
            self.cancel(generation_id)
        return _copy(state)

    def has_work(self) -> bool:
        """Whether a row runs or waits."""
        return bool(self._pending or self._waiting or self._running)

    def step(self) -> list[EngineEvent]:
        """One prefill chunk for the oldest waiting row, one token for every running row."""
        self._steps += 1
        self.step_seconds = self._settings.token_seconds if self._running else 0.0
        events, self._pending = self._pending, []
        events += [self._advance(row) for row in list(self._running.values())]
        if self._waiting and len(self._running) < self._options.batch_max:
            events += self._prefill_chunk(self._waiting[0])
        return events

    def on_work(self, wake: Callable[[], None]) -> None:
        """Never: only ``add`` and ``prefill`` bring work."""

    def use_threads(self, threads: int) -> None:
        """See ``Engine``. Only told in ``stats``."""
        self._threads = threads

    def stats(self) -> EngineStats:
        """A snapshot."""
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            cache_tokens_used=sum(row.wanted_tokens for row in self._running.values()),
            cache_tokens_total=self._options.cache_tokens or _DEFAULT_CACHE_TOKENS,
            steps=self._steps,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            runner="fake",
            threads=self._threads,
            context_tokens=self._context_tokens,
        )

    def _queue(self, row: _Row) -> None:
        problem = self._problem(row)
        if problem is None:
            self._waiting.append(row)
        else:
            self._pending.append(FailedEvent(row.state.generation_id, *problem))

    def _problem(self, row: _Row) -> tuple[str, FailureKind] | None:
        """Why this row cannot run here."""
        ids = row.state.prompt_ids + row.state.output_ids
        if not row.state.prompt_ids:
            return "the prompt is empty", "request"
        if self._context_tokens and len(ids) + row.has_more > self._context_tokens:
            return f"{len(ids)} tokens do not fit into a context of {self._context_tokens}", "context"
        if min(ids) < 0 or max(ids) >= self._vocabulary_size:
            return f"token ids must be between 0 and {self._vocabulary_size - 1}", "request"
        return None

    def _row(self, state: GenerationState) -> _Row:
        own = GenerationState(
            state.generation_id, list(state.prompt_ids), state.sampling, list(state.output_ids)
        )
        row = _Row(own)
        row.reused_tokens = row.cached_tokens = self._reusable_tokens(own)
        return row

    def _reusable_tokens(self, state: GenerationState) -> int:
        """Longest warm prefix, short of the last token: something must be left to compute a token from."""
        ids = state.prompt_ids + state.output_ids
        longest = max((_common_prefix(ids, warm) for warm in self._warm), default=0)
        return max(0, min(longest, len(ids) - 1))

    def _find(self, generation_id: GenerationId) -> GenerationState | None:
        if generation_id in self._running:
            return self._running[generation_id].state
        return next((row.state for row in self._waiting if row.generates(generation_id)), None)

    def _prefill_chunk(self, row: _Row) -> list[EngineEvent]:
        count = min(self._options.prefill_chunk_tokens, row.wanted_tokens - row.cached_tokens)
        seconds = count * self._settings.prefill_token_seconds
        row.cached_tokens += count
        row.prefill_seconds += seconds
        self.step_seconds += seconds
        self._prefill_tokens += count
        if row.cached_tokens < row.wanted_tokens:
            return []
        self._waiting.popleft()
        return self._start(row)

    def _start(self, row: _Row) -> list[EngineEvent]:
        state = row.state
        self._warm.append(state.prompt_ids + state.output_ids)
        prompt_logprobs = None if state.sampling.prompt_logprobs is None else _prompt_logprobs(state)
        prefilled = PrefilledEvent(
            state.generation_id,
            len(state.prompt_ids),
            row.reused_tokens,
            row.prefill_seconds,
            prompt_logprobs,
        )
        if row.only_prefill:
            return [prefilled]
        if not row.has_more:
            return [prefilled, FinishedEvent(state.generation_id, FinishReason.LENGTH)]
        self._running[state.generation_id] = row
        return [prefilled, self._advance(row)]

    def _advance(self, row: _Row) -> EngineEvent:
        state, index = row.state, len(row.state.output_ids)
        if index == self._settings.crash_at_token:
            raise RuntimeError(f"the fake engine was told to crash at token {index}")
        if index == self._settings.fail_at_token:
            del self._running[state.generation_id]
            return FailedEvent(state.generation_id, f"the fake engine was told to fail at token {index}")
        token_id = self._draw(row, index)
        state.output_ids.append(token_id)
        self._decode_tokens += 1
        finish_reason = self._finish_reason(state, token_id)
        if finish_reason is not None:
            del self._running[state.generation_id]
        logprob = _logprob(token_id, state.sampling.logprobs)
        return TokenEvent(state.generation_id, index, token_id, finish_reason, logprob)

    def _draw(self, row: _Row, index: int) -> int:
        """A token of prompt, seed and index alone; a stop id only where the settings say so."""
        stop_ids = row.state.sampling.stop_token_ids
        if index == self._settings.stop_after_tokens and stop_ids:
            return stop_ids[0]
        low, high = self._token_ids
        start = (row.fingerprint + index * _STEP_PRIME) >> 3
        candidates = (low + (start + offset) % (high - low) for offset in range(len(stop_ids) + 1))
        return next((token_id for token_id in candidates if token_id not in stop_ids), low)

    def _finish_reason(self, state: GenerationState, token_id: int) -> FinishReason | None:
        if token_id in state.sampling.stop_token_ids:
            return FinishReason.STOP
        length = len(state.prompt_ids) + len(state.output_ids)
        full = bool(self._context_tokens) and length >= self._context_tokens
        return FinishReason.LENGTH if full or len(state.output_ids) >= state.sampling.max_tokens else None


def _copy(state: GenerationState) -> GenerationState:
    return GenerationState(
        state.generation_id, list(state.prompt_ids), state.sampling, list(state.output_ids)
    )


def _fingerprint(prompt_ids: list[int]) -> int:
    return crc32(b"".join(token_id.to_bytes(8, "little", signed=True) for token_id in prompt_ids))


def _common_prefix(left: list[int], right: list[int]) -> int:
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count


def _logprob(token_id: int, top_count: int | None) -> TokenLogprob | None:
    if top_count is None:
        return None
    return TokenLogprob(token_id, -0.5, tuple((token_id + i, -0.5 - i) for i in range(top_count)))


def _prompt_logprobs(state: GenerationState) -> tuple[TokenLogprob | None, ...]:
    return (None, *(_logprob(token_id, state.sampling.prompt_logprobs) for token_id in state.prompt_ids[1:]))

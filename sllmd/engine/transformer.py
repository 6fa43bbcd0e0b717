"""The engine over transformers models: continuous batching, one step at a time.

Owns: building a model over a checkpoint's memory, the step, what happens to a row from ``add`` to its last
token. Knows nothing of processes, sockets or tiers. Start at ``Builder`` and ``TransformerEngine.step``.

A worker brings it up in three calls::

    warm_up()                                        # once, before the fork: imports, first use of kernels
    builder = Builder(manifest, options)             # as soon as the checkpoint is known
    builder.skeleton()                               # modules on the meta device, ~10 ms; no bytes needed
    engine = builder.finish(Weights.over_memory(manifest, partitions))     # once the bytes are there

``partitions`` is one buffer (mmap, memoryview, bytearray or uint8 tensor) per partition of the manifest, as
long as its ``span_bytes``. ``build_engine`` does all of it at once. All calls on an engine come from one
thread; ``warm_up`` is in ``warmup``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from sllmd.core.errors import UnsupportedCheckpoint
from sllmd.core.ids import GenerationId
from sllmd.engine import allocator
from sllmd.engine.batch import Batch, Chunk, Row
from sllmd.engine.cache import SlotCache
from sllmd.engine.cores import compute_cores
from sllmd.engine.noise import VOCABULARY_MAX
from sllmd.engine.protocol import (
    Engine,
    EngineEvent,
    EngineOptions,
    EngineStats,
    FailedEvent,
    FailureKind,
    FinishedEvent,
    FinishReason,
    GenerationState,
    TokenEvent,
)
from sllmd.engine.runner import Span, TransformersRunner
from sllmd.engine.sampler import are_finite, sample, token_logprob
from sllmd.engine.sizing import context_tokens, default_cache_tokens, free_bytes
from sllmd.engine.skeleton import assign, build_skeleton
from sllmd.engine.slots import Slots, begins_like
from sllmd.engine.upgrade import Upgrade
from sllmd.engine.weights import Weights, majority_dtype
from sllmd.store.manifest import Manifest
from sllmd.telemetry.cores import usable_cores

UPGRADE_SLICE_SECONDS = 0.008
"""Time per step for preparing the fast forward: about half a token's, so that streams go on."""


class Builder:
    """Builds an engine in two parts, so that the first can overlap the bytes' way to memory."""

    def __init__(self, manifest: Manifest, options: EngineOptions) -> None:
        self.manifest = manifest
        self.options = options
        self._model: Any = None

    def skeleton(self) -> None:
        """Build the modules without weights. Raises UnsupportedCheckpoint, MalformedCheckpoint."""
        if self.options.dtype == "auto":
            dtype = majority_dtype(self.manifest)
        else:
            dtype = getattr(torch, self.options.dtype)
        self._model = build_skeleton(self.manifest, dtype)

    def use_threads(self, threads: int) -> None:
        """The engine will run on so many threads."""
        self.options = replace(self.options, threads=threads)

    def finish(self, weights: Weights) -> Engine:
        """Put the weights in. Raises MalformedCheckpoint when they do not fit the model."""
        if self._model is None:
            self.skeleton()
        assign(self._model, weights)
        return TransformerEngine(self._model, self.options)


def build_engine(manifest: Manifest, weights: Weights, options: EngineOptions) -> Engine:
    """An engine over ``weights``, whose bytes are there. Raises CheckpointError and its kin."""
    return Builder(manifest, options).finish(weights)


def thread_count(options: EngineOptions) -> int:
    """Threads of a forward pass: as told, else as many as there are cores for it."""
    return options.threads or compute_cores(usable_cores())


class TransformerEngine:
    """Rows over one model; implements ``protocol.Engine``."""

    def __init__(self, model: Any, options: EngineOptions) -> None:
        allocator.merge_at_once()
        torch.set_num_threads(thread_count(options))
        config = model.config.get_text_config()
        self._vocabulary = model.get_input_embeddings().num_embeddings
        if self._vocabulary > VOCABULARY_MAX:
            raise UnsupportedCheckpoint(
                f"the model has {self._vocabulary} tokens: draws are made of {VOCABULARY_MAX} at most"
            )
        self._context = context_tokens(config, options)
        cache_tokens = options.cache_tokens or default_cache_tokens(model, self._context, options.batch_max)
        self._context = min(self._context, cache_tokens)
        device = next(model.parameters()).device
        # The kernel commits a CPU cache's pages as they are written: room there costs nothing, growing would.
        capacity = self._context if device.type == "cpu" else min(self._context, 512)
        cache = SlotCache(config.num_hidden_layers, slots=options.batch_max + 1, capacity=capacity)
        self._upgrade = Upgrade(
            model,
            TransformersRunner(model, cache),
            cache=cache,
            slot=options.batch_max,
            free_bytes=free_bytes(device),
            enabled=options.fast_path,
        )
        self._served = False
        self._batch = Batch(
            batch_max=options.batch_max, cache_tokens=cache_tokens, chunk_tokens=options.prefill_chunk_tokens
        )
        self._slots = Slots(self._batch, cache)
        self._pending: list[EngineEvent] = []
        self._steps = self._prefill_tokens = self._decode_tokens = 0

    def add(self, state: GenerationState) -> None:
        """See ``Engine``. A state that cannot run fails in the next step's events."""
        self._queue(state, warm_only=False)

    def prefill(self, state: GenerationState) -> None:
        """See ``Engine``. A ``PrefilledEvent`` tells when it is done."""
        self._queue(state, warm_only=True)

    def cancel(self, generation_id: GenerationId) -> None:
        """See ``Engine``."""
        self._pending = [event for event in self._pending if event.generation_id != generation_id]
        row = self._batch.find(generation_id)
        if row is not None:
            self._slots.retire(row)

    def export(self, generation_id: GenerationId, *, stop: bool) -> GenerationState | None:
        """See ``Engine``."""
        row = self._batch.find(generation_id)
        if row is None:
            return None
        exported = _copy(row.state)
        if stop:
            self._slots.retire(row)
        return exported

    def has_work(self) -> bool:
        """See ``Engine``."""
        if self._pending or self._batch.rows or self._batch.waiting:
            return True
        return self._served and self._upgrade.ready

    def use_threads(self, threads: int) -> None:
        """See ``Engine``. Costs microseconds; threads that a step leaves out sleep."""
        torch.set_num_threads(threads)

    def stats(self) -> EngineStats:
        """See ``Engine``."""
        return EngineStats(
            running=len(self._batch.rows),
            waiting=len(self._batch.waiting),
            cache_tokens_used=self._batch.used_tokens,
            cache_tokens_total=self._batch.cache_tokens,
            steps=self._steps,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            runner=self._upgrade.runner.name,
            threads=torch.get_num_threads(),
            context_tokens=self._context,
        )

    def on_work(self, wake: Callable[[], None]) -> None:
        """See ``Engine``. Laying out weights for the fast forward goes on while no row runs."""
        self._upgrade.wake = wake

    @torch.inference_mode()
    def step(self) -> list[EngineEvent]:
        """See ``Engine``. Running rows go first, so that a new prompt's first token leaves at once."""
        events, self._pending = self._pending, []
        self._steps += 1
        while (row := self._batch.overfull()) is not None:
            self._slots.retire(row)
            self._batch.queue_again(row)
        if self._batch.decoding:
            self._decode(events)
        self._batch.admit()
        self._prefill(events)
        if self._served:
            self._advance_upgrade()
        self._served = self._served or self._prefill_tokens > 0
        return events

    def _advance_upgrade(self) -> None:
        """A piece or more of the way to the fast forward; never before the first prompt is through."""
        until = time.perf_counter() + UPGRADE_SLICE_SECONDS
        while self._upgrade.ready:
            self._upgrade.advance()
            if time.perf_counter() >= until:
                return

    def _queue(self, state: GenerationState, *, warm_only: bool) -> None:
        row = Row(_copy(state), warm_only=warm_only)
        problem = self._problem(row)
        if problem:
            self._pending.append(FailedEvent(state.generation_id, *problem))
        else:
            self._batch.add(row)

    def _problem(self, row: Row) -> tuple[str, FailureKind] | None:
        """Why this row cannot run here."""
        if not row.state.prompt_ids:
            return "the prompt is empty", "request"
        if row.length + row.has_more > self._context:
            return f"{row.length} tokens do not fit into a context of {self._context}", "context"
        ids = row.tokens(0, row.length)
        if min(ids) < 0 or max(ids) >= self._vocabulary:
            return f"token ids must be between 0 and {self._vocabulary - 1}", "request"
        if any(not 0 <= token < self._vocabulary for token, _ in row.state.sampling.logit_bias):
            return f"logit_bias takes token ids between 0 and {self._vocabulary - 1}", "request"
        return None

    def _decode(self, events: list[EngineEvent]) -> None:
        rows = self._batch.rows[: self._batch.decoding]
        tokens = torch.tensor([[row.state.output_ids[-1]] for row in rows])
        logits = self._upgrade.runner.forward(0, tokens, [row.cached for row in rows])
        for row in rows:
            row.cached += 1
        self._decode_tokens += len(rows)
        self._emit(rows, logits, events)

    def _emit(self, rows: Sequence[Row], logits: torch.Tensor, events: list[EngineEvent]) -> None:
        """Sample one token for each row; those that end leave."""
        tokens, logprobs = sample(logits, [row.state for row in rows])
        ended = []
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            if token is None:
                self._fail(row, events)
                continue
            state = row.state
            index = len(state.output_ids)
            state.output_ids.append(token)
            reason = self._finish_reason(row, token)
            events.append(TokenEvent(state.generation_id, index, token, reason, logprob))
            if reason is not None:
                ended.append(row)
        for row in ended:
            self._slots.retire(row)

    def _finish_reason(self, row: Row, token: int) -> FinishReason | None:
        sampling = row.state.sampling
        if token in sampling.stop_token_ids:
            return FinishReason.STOP
        if len(row.state.output_ids) >= sampling.max_tokens or row.length >= self._context:
            return FinishReason.LENGTH
        return None

    def _prefill(self, events: list[EngineEvent]) -> None:
        """Bring prompts into the cache, as many as one chunk allows."""
        budget = self._batch.chunk_tokens
        while wave := self._next_wave(budget):
            budget -= sum(chunk.stop - chunk.start for chunk in wave)
            logits = self._run_wave(wave)
            finite = are_finite(logits)
            whole = [i for i, chunk in enumerate(wave) if finite[i] and chunk.stop == chunk.row.length]
            for chunk, good in zip(wave, finite, strict=True):
                if not good:
                    self._fail(chunk.row, events)
            if whole:
                self._arrived([wave[i].row for i in whole], logits[whole], events)

    def _next_wave(self, budget: int) -> list[Chunk]:
        """Chunks that run in one pass: of one row each, first slot first, at most ``budget`` tokens."""
        wave: list[Chunk] = []
        while (chunk := self._batch.next_chunk(budget, behind=len(wave))) is not None:
            row = chunk.row
            if wave and (row.wants_prompt_logprobs or begins_like(row, wave)):
                break
            if not row.started:
                row.started = True
                self._slots.reuse(row, chunk.slot)
                chunk = self._batch.next_chunk(budget, behind=len(wave))
                assert chunk is not None
            wave.append(chunk)
            budget -= chunk.stop - chunk.start
            if row.wants_prompt_logprobs:
                break
        return wave

    def _run_wave(self, wave: Sequence[Chunk]) -> torch.Tensor:
        """The logits after each chunk; a row that wants its prompt's log probabilities runs alone."""
        began = time.perf_counter()
        runner = self._upgrade.runner
        tokens = torch.tensor(
            [token for chunk in wave for token in chunk.row.tokens(chunk.start, chunk.stop)]
        )
        first = wave[0]
        if first.row.wants_prompt_logprobs:
            every = runner.forward(first.slot, tokens[None], [first.start], every_position=True)
            _note_prompt_logprobs(first.row, first, every[0])
            logits = every[:, -1]
        else:
            logits = runner.prefill(
                [Span(chunk.slot, chunk.start, chunk.stop - chunk.start) for chunk in wave], tokens
            )
        self._prefill_tokens += len(tokens)
        seconds = time.perf_counter() - began
        for chunk in wave:
            chunk.row.cached = chunk.stop
            chunk.row.prefill_seconds += seconds
        return logits

    def _arrived(self, rows: Sequence[Row], logits: torch.Tensor, events: list[EngineEvent]) -> None:
        """These rows are wholly in the cache: say so, and sample their first tokens."""
        for row in rows:
            self._batch.begin_decoding(row)
            if not row.prefilled:
                row.prefilled = True
                events.append(row.arrival())
        runs = [i for i, row in enumerate(rows) if row.has_more]
        leaving = [row for row in rows if not row.has_more]
        if runs:
            self._emit([rows[i] for i in runs], logits[runs], events)
        for row in leaving:
            if not row.warm_only:
                events.append(FinishedEvent(row.state.generation_id, FinishReason.LENGTH))
            self._slots.retire(row)

    def _fail(self, row: Row, events: list[EngineEvent]) -> None:
        """Take out a row whose logits are no numbers."""
        message = "the model computed no numbers for this prompt: they overflow, or its weights are damaged"
        events.append(FailedEvent(row.state.generation_id, message))
        self._slots.wipe(row)


def _copy(state: GenerationState) -> GenerationState:
    return GenerationState(
        state.generation_id, list(state.prompt_ids), state.sampling, list(state.output_ids)
    )


def _note_prompt_logprobs(row: Row, chunk: Chunk, logits: torch.Tensor) -> None:
    """The logits at position i judge token i + 1; nothing judges the first."""
    top = row.state.sampling.prompt_logprobs or 0
    if chunk.start == 0:
        row.prompt_logprobs = [None]
    following = row.tokens(chunk.start + 1, min(chunk.stop + 1, len(row.state.prompt_ids)))
    for scores, token in zip(logits, following, strict=False):
        row.prompt_logprobs.append(token_logprob(scores, token, top))

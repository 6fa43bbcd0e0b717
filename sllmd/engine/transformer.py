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

from sllmd.core.context import CONTEXT_FIELDS, ROPE_FIELDS
from sllmd.core.context import context_tokens as model_context_tokens
from sllmd.core.errors import UnsupportedCheckpoint
from sllmd.core.ids import GenerationId
from sllmd.engine import allocator
from sllmd.engine.batch import Batch, Chunk, Move, Row
from sllmd.engine.cache import SlotCache
from sllmd.engine.cores import compute_cores
from sllmd.engine.noise import VOCABULARY_MAX
from sllmd.engine.prefix import PREFIX_TOKENS_MIN, PrefixStore, common_length
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
    PrefilledEvent,
    TokenEvent,
)
from sllmd.engine.runner import Span, TransformersRunner
from sllmd.engine.sampler import are_finite, sample, token_logprob
from sllmd.engine.skeleton import assign, build_skeleton
from sllmd.engine.upgrade import Upgrade
from sllmd.engine.weights import Weights, majority_dtype
from sllmd.store.manifest import Manifest
from sllmd.telemetry.cores import usable_cores
from sllmd.telemetry.memory import available_memory_bytes

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
        self._cache = SlotCache(config.num_hidden_layers, slots=options.batch_max + 1, capacity=capacity)
        self._upgrade = Upgrade(
            model,
            TransformersRunner(model, self._cache),
            cache=self._cache,
            slot=options.batch_max,
            free_bytes=_free_bytes(device),
            enabled=options.fast_path,
        )
        self._served = False
        self._batch = Batch(
            batch_max=options.batch_max, cache_tokens=cache_tokens, chunk_tokens=options.prefill_chunk_tokens
        )
        self._prefixes = PrefixStore(cache_tokens // 4)
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
            self._retire(row)

    def export(self, generation_id: GenerationId, *, stop: bool) -> GenerationState | None:
        """See ``Engine``."""
        row = self._batch.find(generation_id)
        if row is None:
            return None
        exported = _copy(row.state)
        if stop:
            self._retire(row)
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
            self._retire(row)
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
        if row.length + _has_more(row) > self._context:
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
            self._retire(row)

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
            if wave and (_wants_prompt_logprobs(row) or self._begins_like(row, wave)):
                break
            if not row.started:
                row.started = True
                self._reuse(row, chunk.slot)
                chunk = self._batch.next_chunk(budget, behind=len(wave))
                assert chunk is not None
            wave.append(chunk)
            budget -= chunk.stop - chunk.start
            if _wants_prompt_logprobs(row):
                break
        return wave

    def _begins_like(self, row: Row, wave: Sequence[Chunk]) -> bool:
        """Whether ``row`` had better wait until ``wave`` is in the cache, and copy from there."""
        if row.started:
            return False
        tokens = row.tokens(0, row.length)
        return any(
            common_length(tokens, chunk.row.tokens(0, chunk.stop)) >= PREFIX_TOKENS_MIN for chunk in wave
        )

    def _run_wave(self, wave: Sequence[Chunk]) -> torch.Tensor:
        """The logits after each chunk; a row that wants its prompt's log probabilities runs alone."""
        began = time.perf_counter()
        runner = self._upgrade.runner
        tokens = torch.tensor(
            [token for chunk in wave for token in chunk.row.tokens(chunk.start, chunk.stop)]
        )
        first = wave[0]
        if _wants_prompt_logprobs(first.row):
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
                events.append(_prefilled_event(row))
        runs = [i for i, row in enumerate(rows) if _has_more(row)]
        leaving = [row for row in rows if not _has_more(row)]
        if runs:
            self._emit([rows[i] for i in runs], logits[runs], events)
        for row in leaving:
            if not row.warm_only:
                events.append(FinishedEvent(row.state.generation_id, FinishReason.LENGTH))
            self._retire(row)

    def _reuse(self, row: Row, slot: int) -> None:
        """Copy the longest known beginning of ``row`` into its slot; its last token is always computed."""
        if _wants_prompt_logprobs(row):
            return
        tokens = row.tokens(0, row.length)
        retained, length = self._prefixes.longest(tokens)
        source, shared = self._longest_running(tokens, slot)
        if shared > length:
            row.cached = min(shared, row.length - 1)
            self._cache.copy_row(source, slot, row.cached)
        elif retained is not None:
            row.cached = min(length, row.length - 1)
            self._cache.write_row(slot, retained.row, row.cached)
        row.reused = min(row.cached, len(row.state.prompt_ids))

    def _longest_running(self, tokens: list[int], own_slot: int) -> tuple[int, int]:
        """The slot of the running row that begins most like ``tokens``, and how many tokens that is."""
        best = (0, 0)
        for slot, other in enumerate(self._batch.rows):
            if slot != own_slot and other.cached >= PREFIX_TOKENS_MIN:
                shared = common_length(other.tokens(0, other.cached), tokens)
                if shared >= PREFIX_TOKENS_MIN and shared > best[1]:
                    best = (slot, shared)
        return best

    def _fail(self, row: Row, events: list[EngineEvent]) -> None:
        """Take out a row whose logits are no numbers, and what it left in the cache."""
        message = "the model computed no numbers for this prompt: they overflow, or its weights are damaged"
        events.append(FailedEvent(row.state.generation_id, message))
        slot = self._batch.rows.index(row)
        self._cache.wipe(slot, row.cached)
        self._follow(self._batch.remove(row))

    @torch.inference_mode()
    def _retire(self, row: Row) -> None:
        """Take a row out; what it had in the cache is retained for rows that begin alike."""
        if row not in self._batch.rows:
            self._batch.remove(row)
            return
        tokens = row.tokens(0, row.cached)
        slot = self._batch.rows.index(row)
        if self._prefixes.wants(tokens):
            self._prefixes.put(tokens, self._cache.read_row(slot, len(tokens)))
        self._cache.release(slot, row.cached)
        self._follow(self._batch.remove(row))

    def _follow(self, moves: Sequence[Move]) -> None:
        for move in moves:
            self._cache.copy_row(move.source, move.target, move.tokens)
            self._cache.release(move.source, move.tokens)


def context_tokens(config: Any, options: EngineOptions) -> int:
    """Longest prompt + completion: what the model says, or less if the options do."""
    fields = (*CONTEXT_FIELDS, *ROPE_FIELDS)
    model_says = model_context_tokens({field: getattr(config, field, None) for field in fields})
    return min(model_says, options.context_tokens_max or model_says)


def default_cache_tokens(model: Any, context: int, batch_max: int) -> int:
    """Room for ``batch_max`` full contexts, as far as a quarter of the memory that is free now goes."""
    config = model.config.get_text_config()
    parameter = next(model.parameters())
    token_bytes = config.num_hidden_layers * layer_width(config) * parameter.element_size()
    affordable = _free_bytes(parameter.device) // 4 // token_bytes
    return int(max(min(context, 512), min(batch_max * context, affordable)))


def layer_width(config: Any) -> int:
    """Numbers that one layer caches per token: keys and values of all heads, or what they come from."""
    if getattr(config, "kv_lora_rank", None):
        return int(config.kv_lora_rank + config.qk_rope_head_dim)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * heads * width)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory_bytes()


def _copy(state: GenerationState) -> GenerationState:
    return GenerationState(
        state.generation_id, list(state.prompt_ids), state.sampling, list(state.output_ids)
    )


def _wants_prompt_logprobs(row: Row) -> bool:
    return row.state.sampling.prompt_logprobs is not None and not row.prefilled


def _has_more(row: Row) -> bool:
    return not row.warm_only and len(row.state.output_ids) < row.state.sampling.max_tokens


def _prefilled_event(row: Row) -> PrefilledEvent:
    wanted = row.state.sampling.prompt_logprobs is not None
    return PrefilledEvent(
        row.state.generation_id,
        prompt_tokens=len(row.state.prompt_ids),
        reused_tokens=row.reused,
        seconds=row.prefill_seconds,
        prompt_logprobs=tuple(row.prompt_logprobs) if wanted else None,
    )


def _note_prompt_logprobs(row: Row, chunk: Chunk, logits: torch.Tensor) -> None:
    """The logits at position i judge token i + 1; nothing judges the first."""
    top = row.state.sampling.prompt_logprobs or 0
    if chunk.start == 0:
        row.prompt_logprobs = [None]
    following = row.tokens(chunk.start + 1, min(chunk.stop + 1, len(row.state.prompt_ids)))
    for scores, token in zip(logits, following, strict=False):
        row.prompt_logprobs.append(token_logprob(scores, token, top))

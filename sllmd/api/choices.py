"""The generations of one request, run together and told apart by index.

One generation is iterated as it is; several run in tasks of their own and meet in a bounded queue, so that a
client that reads slowly slows all of them and none piles up. Leaving cancels whatever still runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Self

from sllmd.engine.protocol import FinishReason
from sllmd.roles.generation import Delta, GenerationRequest
from sllmd.roles.router import Generation, Router
from sllmd.telemetry.metrics import Metrics

QUEUED_DELTAS_MAX = 64
"""Deltas of all choices that wait for the client: a few steps of a full batch."""

_Item = tuple[int, Delta]


class Choices:
    """``async with Choices(...) as choices: async for index, delta in choices``."""

    def __init__(self, router: Router, requests: Sequence[GenerationRequest]) -> None:
        self.generations = [router.generate(request) for request in requests]
        self._first_seconds: list[float | None] = [None] * len(requests)
        self._last_seconds = [0.0] * len(requests)
        self._finish_reasons: list[FinishReason | None] = [None] * len(requests)
        self._deltas = self._one() if len(requests) == 1 else self._several()
        self._first: asyncio.Task[_Item] | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._queue: asyncio.Queue[_Item | Exception] = asyncio.Queue(QUEUED_DELTAS_MAX)

    async def __aenter__(self) -> Self:
        if len(self.generations) == 1:
            await self.generations[0].__aenter__()
        else:
            self._pumps = [
                asyncio.create_task(self._pump(index, generation))
                for index, generation in enumerate(self.generations)
            ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave every generation, also when the leaving is cancelled half-way: clients go at any moment."""
        under_way = [task for task in (self._first, *self._pumps) if task is not None and not task.done()]
        for task in under_way:
            task.cancel()
        try:
            if under_way:
                await asyncio.wait(under_way)
        finally:
            await self._leave(kind, error, trace)

    async def _leave(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._deltas.aclose()
        finally:
            if len(self.generations) == 1:
                await self.generations[0].__aexit__(kind, error, trace)

    async def first_within(self, seconds: float) -> bool:
        """Wait that long for the first delta. True: there is one, or an error, for ``async for`` to take."""
        if self._first is None:
            self._first = asyncio.create_task(anext(self._deltas))
        done, _ = await asyncio.wait({self._first}, timeout=seconds)
        return bool(done)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Item:
        if self._first is None:
            return await anext(self._deltas)
        try:
            return await self._first
        finally:
            self._first = None

    async def _one(self) -> AsyncGenerator[_Item, None]:
        async for delta in self.generations[0]:
            self._note(0, delta)
            yield 0, delta

    async def _several(self) -> AsyncGenerator[_Item, None]:
        unfinished = len(self.generations)
        while unfinished:
            item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            unfinished -= item[1].finish_reason is not None
            yield item

    async def _pump(self, index: int, generation: Generation) -> None:
        try:
            async with generation:
                async for delta in generation:
                    self._note(index, delta)
                    await self._queue.put((index, delta))
        except Exception as error:  # noqa: BLE001 - carried to the one who iterates
            await self._queue.put(error)

    def _note(self, index: int, delta: Delta) -> None:
        self._finish_reasons[index] = delta.finish_reason
        now_seconds = time.monotonic()
        if self._first_seconds[index] is None:
            self._first_seconds[index] = now_seconds
        self._last_seconds[index] = now_seconds

    def record(self, metrics: Metrics, model: str, began_seconds: float) -> None:
        """Count what was generated."""
        for index, generation in enumerate(self.generations):
            usage, timing = generation.usage, generation.timing
            first_seconds = self._first_seconds[index]
            if first_seconds is None:
                continue
            metrics.prompt_tokens_total.labels(model).inc(usage.prompt_tokens)
            metrics.generation_tokens_total.labels(model).inc(usage.completion_tokens)
            metrics.request_prompt_tokens.labels(model).observe(usage.prompt_tokens)
            metrics.request_generation_tokens.labels(model).observe(usage.completion_tokens)
            metrics.queue_time_seconds.labels(model).observe(timing.queue_ms / 1000)
            reason = self._finish_reasons[index]
            metrics.request_finished_total.labels(model, reason.value if reason else "none").inc()
            cold = "1" if timing.cold else "0"
            metrics.time_to_first_token_seconds.labels(model, cold).observe(first_seconds - began_seconds)
            if usage.completion_tokens > 1:
                seconds = (self._last_seconds[index] - first_seconds) / (usage.completion_tokens - 1)
                metrics.time_per_output_token_seconds.labels(model).observe(seconds)
        self._record_cold_start(metrics, model)

    def _record_cold_start(self, metrics: Metrics, model: str) -> None:
        """Once per request: its choices waited for the same start."""
        timing = self.generations[0].timing
        if not timing.cold:
            return
        metrics.cold_starts_total.labels(model, timing.tier).inc()
        metrics.cold_start_seconds.labels(timing.tier).observe(timing.load_ms / 1000)
        if timing.decision is not None:
            seconds = (timing.queue_ms + timing.load_ms) / 1000 - timing.decision.decide_seconds
            error = abs(timing.decision.total_seconds - seconds)
            metrics.startup_estimate_error_seconds.labels(timing.tier).observe(error)
        for stage, milliseconds in timing.stages.items():
            metrics.load_stage_seconds.labels(stage).observe(milliseconds / 1000)

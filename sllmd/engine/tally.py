"""Which generations a replica runs, and how far they are: what its node tells the leader. Pure.

Owns: one record per generation, written by whoever delivers its events. Counting costs one comparison per
token and no event of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from sllmd.core.ids import GenerationId
from sllmd.engine.protocol import EngineEvent, GenerationState, PrefilledEvent, TokenEvent

_ENDED_MAX = 32
"""Generations remembered after their end: as many as may end between two reports of a busy replica."""


@dataclass(slots=True)
class Run:
    """One generation."""

    generation_id: GenerationId
    tokens_in: int
    tokens_out: int
    prefill_tokens: int = 0
    """Prompt tokens that were computed, without those that a retained prefix had."""
    prefill_seconds: float = 0.0

    def note(self, event: EngineEvent) -> None:
        """One of its events came."""
        if type(event) is TokenEvent:
            self.tokens_out = event.index + 1
        elif type(event) is PrefilledEvent:
            self.prefill_tokens = event.prompt_tokens - event.reused_tokens
            self.prefill_seconds = event.seconds


@dataclass(slots=True)
class Tally:
    """Of one replica."""

    running: dict[GenerationId, Run] = field(default_factory=dict)
    _ended: deque[Run] = field(default_factory=lambda: deque(maxlen=_ENDED_MAX))

    def begin(self, state: GenerationState) -> Run:
        """A generation came."""
        run = Run(state.generation_id, len(state.prompt_ids), len(state.output_ids))
        self.running[state.generation_id] = run
        return run

    def end(self, run: Run) -> None:
        """It ended or left."""
        if self.running.get(run.generation_id) is run:
            del self.running[run.generation_id]
        self._ended.append(run)

    def ended(self) -> Iterable[Run]:
        """Those that ended last."""
        return self._ended

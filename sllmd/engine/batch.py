"""Which rows run, in which slots, and what the next step does. Pure.

Rows sit in consecutive slots, those that decode first::

    slot   0 .. decoding-1          decoding .. len(rows)-1
           one token per step       prompt not yet in the cache, first come first

so that a decode pass is one slice of the cache. A step is planned in this order:

1. ``overfull``: every decoding row needs one token more; while the cache is too full, the youngest row
   leaves and queues again (the same as being exported and added).
2. ``admit``: waiting rows enter while there is a slot and room for their tokens and some of their output.
3. ``next_chunk``: prompts go in, first slot first, at most so many tokens per step.

Whoever leaves is replaced by rows that move into its slot; the moves are returned, for the cache to follow.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from sllmd.core.ids import GenerationId
from sllmd.engine.protocol import GenerationState, PrefilledEvent, TokenLogprob

RESERVE_TOKENS = 16
"""Room for output of every running row that the next must find to be admitted: less, and it would soon be
preempted."""


@dataclass(slots=True, eq=False)
class Row:
    """A generation and how much of it the cache holds."""

    state: GenerationState
    warm_only: bool = False
    """Only to be brought into the cache, not to be run."""
    cached: int = 0
    reused: int = 0
    started: bool = False
    """Its first chunk was planned; a prefix was looked for."""
    prefilled: bool = False
    """Its prompt's arrival was reported."""
    age: int = 0
    prefill_seconds: float = 0.0
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens known: prompt and output."""
        return len(self.state.prompt_ids) + len(self.state.output_ids)

    @property
    def has_more(self) -> bool:
        """Whether it is to be run, and its output is not as long as it may get."""
        return not self.warm_only and len(self.state.output_ids) < self.state.sampling.max_tokens

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether every position of its prompt is still to be judged."""
        return self.state.sampling.prompt_logprobs is not None and not self.prefilled

    def arrival(self) -> PrefilledEvent:
        """Its prompt is in the cache."""
        wanted = self.state.sampling.prompt_logprobs is not None
        return PrefilledEvent(
            self.state.generation_id,
            prompt_tokens=len(self.state.prompt_ids),
            reused_tokens=self.reused,
            seconds=self.prefill_seconds,
            prompt_logprobs=tuple(self.prompt_logprobs) if wanted else None,
        )

    def tokens(self, start: int, stop: int) -> list[int]:
        """Prompt and output ids from ``start`` to before ``stop``."""
        prompt = self.state.prompt_ids
        if stop <= len(prompt):
            return prompt[start:stop]
        output = self.state.output_ids
        if start >= len(prompt):
            return output[start - len(prompt) : stop - len(prompt)]
        return prompt[start:] + output[: stop - len(prompt)]


@dataclass(frozen=True, slots=True)
class Move:
    """Slot ``source`` now belongs at ``target``; ``tokens`` of it matter."""

    source: int
    target: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one row to be prefilled, ``start`` to before ``stop``."""

    row: Row
    slot: int
    start: int
    stop: int


class Batch:
    """The rows. ``cache_tokens`` bounds what all rows together hold."""

    def __init__(self, *, batch_max: int, cache_tokens: int, chunk_tokens: int) -> None:
        self.batch_max = batch_max
        self.cache_tokens = cache_tokens
        self.chunk_tokens = chunk_tokens
        self.waiting: deque[Row] = deque()
        self.rows: list[Row] = []
        self.decoding = 0
        self._ages = 0

    @property
    def used_tokens(self) -> int:
        """Tokens that the rows hold or will hold once their prompts are in."""
        return sum(row.length for row in self.rows)

    def add(self, row: Row) -> None:
        """Queue ``row``; its age decides who gives way when the cache is full."""
        self._ages += 1
        row.age = self._ages
        self.waiting.append(row)

    def find(self, generation_id: GenerationId) -> Row | None:
        """The row of this generation, running or waiting."""
        for row in (*self.rows, *self.waiting):
            if row.state.generation_id == generation_id and not row.warm_only:
                return row
        return None

    def remove(self, row: Row) -> list[Move]:
        """Take ``row`` out, wherever it is; the moves that close the gap. Prompts keep their order."""
        if row in self.waiting:
            self.waiting.remove(row)
            return []
        hole = self.rows.index(row)
        moves: list[Move] = []
        if hole < self.decoding:
            self.decoding -= 1
            hole = self._move(self.decoding, hole, moves)
        for source in range(hole + 1, len(self.rows)):
            hole = self._move(source, hole, moves)
        self.rows.pop()
        return moves

    def overfull(self) -> Row | None:
        """The row that has to leave so that the others can go on."""
        if len(self.rows) > 1 and self.used_tokens > self.cache_tokens:
            return max(self.rows, key=lambda row: row.age)
        return None

    def queue_again(self, row: Row) -> None:
        """Have a row that was taken out wait as the first."""
        row.cached, row.started = 0, False
        self.waiting.appendleft(row)

    def admit(self) -> list[Row]:
        """Rows that leave the queue for a slot."""
        admitted: list[Row] = []
        while self.waiting and len(self.rows) < self.batch_max:
            need = self.waiting[0].length + RESERVE_TOKENS * (len(self.rows) + 1)
            if self.rows and self.used_tokens + need > self.cache_tokens:
                break
            row = self.waiting.popleft()
            self.rows.append(row)
            admitted.append(row)
        return admitted

    def next_chunk(self, budget: int, behind: int = 0) -> Chunk | None:
        """The next piece of a prompt, at most ``budget`` tokens; None: all prompts are in.

        ``behind`` prefilling rows are passed over: their chunks are taken already.
        """
        slot = self.decoding + behind
        if slot >= len(self.rows) or budget <= 0:
            return None
        row = self.rows[slot]
        return Chunk(row, slot, row.cached, min(row.length, row.cached + budget))

    def begin_decoding(self, row: Row) -> None:
        """The first prefilling row has its prompt in: it decodes from now on."""
        assert self.rows[self.decoding] is row
        self.decoding += 1

    def _move(self, source: int, target: int, moves: list[Move]) -> int:
        """Put the row of slot ``source`` into ``target``; the slot that is empty now."""
        if source != target:
            row = self.rows[source]
            self.rows[target] = row
            if row.cached:
                moves.append(Move(source, target, row.cached))
        return source

"""One generation's truth: its prompt, how it is sampled, and every token so far. Pure.

The router keeps it, and every token passes the router. A token enters once, in order, whoever made it: only
the present hop's, and only the next index. What an older hop still sends is dropped and computed again by the
present source, to the same effect, since draws are keyed by (seed, index).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import Enum

from sllmd.core.ids import GenerationId
from sllmd.engine.protocol import (
    FailedEvent,
    FinishedEvent,
    FinishReason,
    GenerationState,
    PrefilledEvent,
    TokenEvent,
    TokenLogprob,
)


class Verdict(Enum):
    """What the ledger made of an event."""

    ACCEPTED = "accepted"
    STALE = "stale"
    """Of an older hop, or of one that is over: it changes nothing."""
    DUPLICATE = "duplicate"
    """A token that the ledger has: it changes nothing."""
    GAP = "gap"
    """The present source left a token out: it cannot be trusted, and nothing changed."""


class Ledger:
    """See the module."""

    def __init__(self, state: GenerationState) -> None:
        """``state`` may have output already: it is known, and the client has it."""
        self.generation_id: GenerationId = state.generation_id
        self.prompt_ids = tuple(state.prompt_ids)
        self.sampling = state.sampling
        self.finish_reason: FinishReason | None = None
        self.failure: FailedEvent | None = None
        self.hop = 0
        """Of the present source; counts the changes of place."""
        self._output_ids = list(state.output_ids)
        self._logprobs: list[TokenLogprob | None] = [None] * len(state.output_ids)
        self._delivered = len(state.output_ids)
        self._prefilled = bool(state.output_ids)

    @property
    def tokens(self) -> int:
        """Output tokens so far."""
        return len(self._output_ids)

    @property
    def delivered(self) -> int:
        """How many of them the client has."""
        return self._delivered

    @property
    def over(self) -> bool:
        """Whether no token follows."""
        return self.finish_reason is not None or self.failure is not None

    @property
    def remaining(self) -> int:
        """Tokens that may follow at most."""
        return 0 if self.over else max(0, self.sampling.max_tokens - self.tokens)

    def take(self, hop: int, event: TokenEvent | PrefilledEvent | FinishedEvent | FailedEvent) -> Verdict:
        """Judge what the source of ``hop`` sent, and write it down if it is the next thing that is true."""
        if hop != self.hop or self.over:
            return Verdict.STALE
        match event:
            case TokenEvent():
                return self._take_token(event)
            case PrefilledEvent():
                first, self._prefilled = not self._prefilled, True
                return Verdict.ACCEPTED if first else Verdict.DUPLICATE
            case FinishedEvent(finish_reason=reason):
                self.finish_reason = reason
            case FailedEvent():
                self.failure = event
        return Verdict.ACCEPTED

    def _take_token(self, event: TokenEvent) -> Verdict:
        if event.index < self.tokens:
            return Verdict.DUPLICATE
        if event.index > self.tokens:
            return Verdict.GAP
        self._output_ids.append(event.token_id)
        self._logprobs.append(event.logprob)
        self.finish_reason = event.finish_reason
        return Verdict.ACCEPTED

    def switch(self) -> int:
        """The commit point: from now on only the source of the hop that is returned is heard."""
        self.hop += 1
        return self.hop

    def deliver(self, count: int) -> None:
        """The client has its first ``count`` tokens."""
        self._delivered = max(self._delivered, min(count, self.tokens))

    def output_ids(self, start: int = 0) -> Sequence[int]:
        """Ids of the tokens from index ``start`` on."""
        return self._output_ids[start:]

    def events(self, start: int = 0) -> Iterator[TokenEvent]:
        """The tokens from index ``start`` on, as they came: for a client that comes back."""
        for index in range(start, self.tokens):
            last = index == self.tokens - 1
            yield TokenEvent(
                self.generation_id,
                index,
                self._output_ids[index],
                self.finish_reason if last else None,
                self._logprobs[index],
            )

    def state(self) -> GenerationState:
        """What another place needs to go on from here. Prompt log probabilities are asked for only once."""
        sampling = replace(self.sampling, prompt_logprobs=None) if self._prefilled else self.sampling
        return GenerationState(self.generation_id, list(self.prompt_ids), sampling, list(self._output_ids))

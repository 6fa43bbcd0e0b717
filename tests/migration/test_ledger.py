"""Every token once, in order, from one source at a time."""

from __future__ import annotations

import pytest

from sllmd.core.ids import GenerationId
from sllmd.engine.protocol import (
    FailedEvent,
    FinishedEvent,
    FinishReason,
    GenerationState,
    PrefilledEvent,
    Sampling,
    TokenEvent,
    TokenLogprob,
)
from sllmd.migration.ledger import Ledger, Verdict

ID = GenerationId("g")
ACCEPTED, STALE, DUPLICATE, GAP = Verdict


def ledger(*output_ids: int, max_tokens: int = 10) -> Ledger:
    sampling = Sampling(seed=7, max_tokens=max_tokens, prompt_logprobs=1)
    return Ledger(GenerationState(ID, [1, 2, 3], sampling, list(output_ids)))


def token(index: int, token_id: int = 50, reason: FinishReason | None = None) -> TokenEvent:
    return TokenEvent(ID, index, token_id, reason, TokenLogprob(token_id, -0.5))


def test_tokens_enter_in_order_and_once() -> None:
    book = ledger()
    taken = [(0, 50), (0, 51), (2, 52), (1, 53)]
    assert [book.take(0, token(*each)) for each in taken] == [ACCEPTED, DUPLICATE, GAP, ACCEPTED]
    assert book.output_ids() == [50, 53]


def test_after_the_switch_only_the_new_hop_is_heard() -> None:
    book = ledger()
    book.take(0, token(0))
    assert book.switch() == 1
    assert book.take(0, token(1, 60)) is STALE
    assert book.take(0, FailedEvent(ID, "it went")) is STALE
    assert book.take(2, token(1, 60)) is STALE
    assert book.take(1, token(1, 61)) is ACCEPTED
    assert (book.output_ids(), book.over) == ([50, 61], False)


@pytest.mark.parametrize(
    "end", [token(1, 2, FinishReason.STOP), FinishedEvent(ID, FinishReason.LENGTH), FailedEvent(ID, "no")]
)
def test_nothing_follows_the_end(end) -> None:
    book = ledger()
    book.take(0, token(0))
    assert book.remaining == 9
    assert book.take(0, end) is ACCEPTED
    assert (book.over, book.remaining) == (True, 0)
    assert book.take(0, token(book.tokens)) is STALE
    assert book.take(book.switch(), token(book.tokens)) is STALE


def test_the_state_resumes_where_the_ledger_is_and_asks_for_prompt_logprobs_once() -> None:
    book = ledger()
    assert book.state().sampling.prompt_logprobs == 1
    prefilled = PrefilledEvent(ID, 3, 0, 0.1)
    assert [book.take(0, prefilled) for _ in range(2)] == [ACCEPTED, DUPLICATE]
    book.take(0, token(0))
    state = book.state()
    assert (state.prompt_ids, state.output_ids) == ([1, 2, 3], [50])
    assert (state.sampling.seed, state.sampling.prompt_logprobs) == (7, None)
    state.output_ids.append(99)
    assert book.output_ids() == [50]


def test_what_the_client_has_never_shrinks_and_is_never_more_than_there_is() -> None:
    book = ledger(40, 41)
    assert book.delivered == 2
    for index in (2, 3, 4):
        book.take(0, token(index))
    for count, known in ((4, 4), (3, 4), (9, 5)):
        book.deliver(count)
        assert book.delivered == known


def test_a_client_that_comes_back_hears_the_same_events() -> None:
    book = ledger()
    sent = [token(0, 9), token(1, 8), token(2, 7, FinishReason.LENGTH)]
    for event in sent:
        book.take(0, event)
    assert list(book.events(1)) == sent[1:]

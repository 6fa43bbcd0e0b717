"""The engine says what transformers' generate says: alone, batched, chunked, resumed, moved."""

from __future__ import annotations

import pytest

from tests.engine.driving import drain, outputs, prompts, reference, state
from tests.engine.models import ARCHITECTURES, VOCABULARY, InMemory, checkpoint, random_model

LENGTHS = (5, 21, 13, 1, 34)


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def model(request: pytest.FixtureRequest) -> InMemory:
    return checkpoint(random_model(request.param))


def test_alone_and_batched_equal_generate(model: InMemory) -> None:
    asked = prompts(LENGTHS, VOCABULARY)
    expected = [reference(model.model, prompt) for prompt in asked]
    alone = model.engine(prefill_chunk_tokens=8)
    for number, prompt in enumerate(asked):
        alone.add(state(f"{number}", prompt))
        assert outputs(drain(alone)) == {f"{number}": expected[number]}
    together = model.engine()
    for number, prompt in enumerate(asked):
        together.add(state(f"{number}", prompt))
    assert outputs(drain(together)) == {str(i): tokens for i, tokens in enumerate(expected)}

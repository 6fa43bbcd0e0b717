"""How the next token is chosen: table tests, and frequencies of many draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sllmd.engine.protocol import GenerationState
from sllmd.engine.sampler import sample, token_logprob
from tests.engine.driving import state

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0, -4.0])


def row(name: str = "row", prompt: tuple[int, ...] = (1,), **rules: Any) -> GenerationState:
    return state(name, prompt, **{"temperature": 1.0, **rules})


def draw(logits: torch.Tensor, count: int = 4000, **rules: Any) -> torch.Tensor:
    """Frequencies of tokens over many seeds, each drawn alone at output index 0."""
    rows = [row(seed=seed, **rules) for seed in range(count)]
    tokens, _ = sample(logits.expand(count, -1), rows)
    return torch.bincount(torch.tensor(tokens), minlength=logits.numel()) / count


def test_draws_follow_the_distribution() -> None:
    """Chi-square of 20,000 draws from 50 tokens; 85.4 is its 99.9th percentile at 49 degrees."""
    logits = torch.linspace(0, 4, 50)[torch.randperm(50, generator=torch.Generator().manual_seed(4))]
    for temperature in (0.8, 1.5):
        expected = (logits / temperature).softmax(0)
        found = draw(logits, 20_000, temperature=temperature)
        assert float(((found - expected) ** 2 / expected).sum()) * 20_000 < 85.4


def test_draws_from_a_large_flat_vocabulary() -> None:
    """Chi-square of 1,000 draws over 20 equally likely stretches; 43.8 is its 99.9th percentile."""
    logits = torch.zeros(1, 50_000)
    tokens = [sample(logits, [row(seed=seed)])[0][0] for seed in range(1000)]
    counts = torch.histc(torch.tensor(tokens, dtype=torch.float32), 20, 0, 50_000)
    assert float(((counts - 50) ** 2 / 50).sum()) < 43.8
    assert len(set(tokens)) > 950


@pytest.mark.parametrize(("seed_step", "index_step"), [(0, 1), (1, 0)], ids=["next index", "next seed"])
def test_a_draw_tells_nothing_of_the_next(seed_step: int, index_step: int) -> None:
    """Chi-square of 10,000 pairs in a table of 5 x 5; 39.3 is its 99.9th percentile at 16 degrees."""
    logits = torch.zeros(1, 5)

    def token(seed: int, index: int) -> int:
        drawn = sample(logits, [state("a", (1,), output=[1] * index, seed=seed, temperature=1.0)])[0][0]
        assert drawn is not None
        return drawn

    pairs = [
        5 * token(2 * seed, 2 * index) + token(2 * seed + seed_step, 2 * index + index_step)
        for seed in range(1000)
        for index in range(10)
    ]
    counts = torch.bincount(torch.tensor(pairs), minlength=25).view(5, 5).double()
    expected = counts.sum(0, keepdim=True) * counts.sum(1, keepdim=True) / len(pairs)
    assert float(((counts - expected) ** 2 / expected).sum()) < 39.3


def test_what_rounds_differently_is_drawn_alike() -> None:
    """Errors as of another order of sums, all of one sign at either end of the vocabulary: the worst.

    Draws by cumulated probability go another way in one of ten: all borders move.
    """
    logits = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(5))
    moved = logits + torch.linspace(-1e-5, 1e-5, 50_000)
    rows = [row(seed=seed, temperature=0.8) for seed in range(500)]
    different = [each for each in rows if sample(logits, [each])[0] != sample(moved, [each])[0]]
    assert len(different) <= 1


@pytest.mark.parametrize("size", [6, 97, 4096, 50_257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_first_largest(size: int, dtype: torch.dtype) -> None:
    logits = torch.randn(5, size, generator=torch.Generator().manual_seed(1)).to(dtype)
    logits[2, size // 2 :] = 9.0
    rows = [row(temperature=0.0) for _ in range(5)]
    assert sample(logits, rows)[0] == [int((r == r.max()).nonzero()[0]) for r in logits.float()]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({}, LOGITS.softmax(0)),
        ({"temperature": 0.5}, (LOGITS / 0.5).softmax(0)),
        ({"temperature": 1e-30}, torch.tensor([0, 0, 0, 0, 1.0, 0])),
        ({"top_k": 2}, torch.tensor([0.2689, 0, 0, 0, 0.7311, 0])),
        ({"top_p": 0.8}, torch.tensor([0.2689, 0, 0, 0, 0.7311, 0])),
        ({"top_p": 1e-9}, torch.tensor([0, 0, 0, 0, 1.0, 0])),
        ({"min_p": 0.3}, torch.tensor([0.2689, 0, 0, 0, 0.7311, 0])),
        ({"top_k": 3, "top_p": 0.8}, torch.tensor([0.2689, 0, 0, 0, 0.7311, 0])),
        ({"logit_bias": ((4, -100.0), (5, 6.0))}, torch.tensor([2.0, 1, 0, -1, -97, 2]).softmax(0)),
    ],
)
def test_frequencies(rules: dict[str, Any], expected: torch.Tensor) -> None:
    assert (draw(LOGITS, **rules) - expected).abs().max() < 0.025


def test_filters_beyond_the_first_candidates() -> None:
    flat = torch.zeros(2000)
    flat[0] = 0.1
    assert (draw(flat, top_p=0.999) > 0).sum() > 1500
    assert (draw(flat, top_p=0.1) > 0).sum() <= 200
    assert (draw(flat, min_p=0.5) > 0).sum() > 1500


@pytest.mark.parametrize(
    ("rules", "prompt", "output", "expected"),
    [
        ({"frequency_penalty": 0.75}, (0,), [4, 4, 0], [2 - 0.75, 1, 0, -1, 3 - 1.5, -4]),
        ({"presence_penalty": 0.5}, (0,), [4, 4], [2, 1, 0, -1, 2.5, -4]),
        ({"repetition_penalty": 2.0}, (0, 3), [4, 5], [1, 1, 0, -2, 1.5, -8]),
        ({"logit_bias": ((1, 1.5), (3, -1.0))}, (0,), [], [2, 2.5, 0, -2, 3, -4]),
    ],
)
def test_penalties(
    rules: dict[str, Any], prompt: tuple[int, ...], output: list[int], expected: list[float]
) -> None:
    """A penalised row draws what an unpenalised one draws from the expected logits, whatever the noise."""
    for seed in range(300):
        penalised = state("a", prompt, output=output, seed=seed, temperature=1.0, **rules)
        plain = state("b", prompt, output=output, seed=seed, temperature=1.0)
        wanted, _ = sample(torch.tensor([expected]), [plain])
        given, _ = sample(LOGITS[None], [penalised])
        assert given == wanted


def test_penalties_turn_a_greedy_choice() -> None:
    repeated = state("a", (0,), output=[4, 4], frequency_penalty=1.0)
    assert sample(LOGITS[None], [repeated])[0] == [0]


def test_rows_do_not_see_each_other() -> None:
    rows = [
        row(seed=5),
        row(seed=6, temperature=0.0, logprobs=2),
        row(seed=7, top_p=0.9),
        row(seed=8, frequency_penalty=1.0, top_k=3),
        row(seed=5),
    ]
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(2))
    before = logits.clone()
    together, _ = sample(logits, rows)
    assert together == [sample(logits[i : i + 1], [rows[i]])[0][0] for i in range(5)]
    assert torch.equal(logits, before)


def test_logprobs_are_before_temperature_and_penalties() -> None:
    asked = state("a", (0,), output=[4], temperature=0.3, logprobs=3, frequency_penalty=2.0)
    (token,), (logprob,) = sample(LOGITS[None], [asked])
    plain = LOGITS.log_softmax(0)
    assert logprob is not None
    assert logprob.token_id == token
    assert logprob.logprob == pytest.approx(float(plain[token]))
    assert [pair[0] for pair in logprob.top] == [4, 0, 1]
    assert logprob.top[0][1] == pytest.approx(float(plain[4]))


def test_more_alternatives_than_tokens() -> None:
    assert len(token_logprob(LOGITS, 0, 20).top) == 6
    assert token_logprob(LOGITS, 0, 0).top == ()


def test_the_last_token_is_never_overrun() -> None:
    logits = torch.full((1, 10), -1e4)
    logits[0, 3] = 0.0
    assert {sample(logits, [row(seed=seed)])[0][0] for seed in range(200)} == {3}

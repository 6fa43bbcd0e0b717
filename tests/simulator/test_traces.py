"""Traces: made ones have the burstiness asked for, read ones say which line is wrong."""

from __future__ import annotations

import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from sllmd.core.errors import InvalidRequest
from sllmd.core.ids import ModelName
from sllmd.simulator.traces import LENGTHS, gamma_bursts, read_trace

MODELS = [ModelName(f"m{index}") for index in range(20)]
AZURE = Path(__file__).parent.parent / "data" / "azure-llm-2023-code-trimmed.csv"


def made(cv: float, seed: int = 0, seconds: float = 50_000.0):
    return gamma_bursts(
        MODELS[:1],
        requests_per_second=1.0,
        cv=cv,
        seconds=seconds,
        lengths=LENGTHS["gsm8k"],
        seed=seed,
    )


@pytest.mark.parametrize("cv", [1.0, 4.0])
def test_gaps_have_the_rate_and_the_coefficient_of_variation(cv: float) -> None:
    trace = made(cv)
    gaps = [after.seconds - before.seconds for before, after in pairwise(trace)]
    assert statistics.fmean(gaps) == pytest.approx(1.0, rel=0.15)
    assert statistics.stdev(gaps) / statistics.fmean(gaps) == pytest.approx(cv, rel=0.15)


def test_lengths_have_the_mean_asked_for() -> None:
    trace = made(1.0)
    assert statistics.fmean(each.tokens_out for each in trace) == pytest.approx(120, rel=0.05)
    assert min(each.tokens_in for each in trace) >= 1


def test_a_trace_begins_anywhere_in_a_gap() -> None:
    """With bursts and long gaps, most traces begin with silence; the mean count is the rate's."""
    counts = [len(made(8.0, seed, 200.0)) for seed in range(300)]
    assert statistics.fmean(counts) == pytest.approx(200, rel=0.25)


def test_azure_s_trace_is_read() -> None:
    trace = read_trace(AZURE.read_text().splitlines(), MODELS, seed=1)
    assert len(trace) == 1000
    assert (trace[0].seconds, trace[0].tokens_in, trace[0].tokens_out) == (0.0, 4808, 10)
    assert trace[1].seconds == pytest.approx(0.052)
    assert all(before.seconds <= after.seconds for before, after in pairwise(trace))
    assert len({arrival.model for arrival in trace}) > 10
    assert trace == read_trace(AZURE.read_text().splitlines(), MODELS, seed=1)


def test_burstgpt_s_format_is_read_without_its_failures() -> None:
    lines = [
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
        "5,ChatGPT,472,18,490,Conversation log",
        "45,GPT-4,20,0,20,Conversation log",
        "118.0,GPT-4,1087,230,1317,API log",
    ]
    trace = read_trace(lines, MODELS, seed=0)
    assert [(each.seconds, each.tokens_in, each.tokens_out) for each in trace] == [
        (0, 472, 18),
        (113, 1087, 230),
    ]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "neither"),
        (["time,tokens"], "neither"),
        (["TIMESTAMP,ContextTokens", "x,1"], "no column `GeneratedTokens`"),
        (
            ["TIMESTAMP,ContextTokens,GeneratedTokens", "yesterday,1,2"],
            "line 2 of the trace has no timestamp",
        ),
        (
            ["Timestamp,Model,Request tokens,Response tokens", "1,m,many,2"],
            "line 2 of the trace has no number",
        ),
        (
            ["Timestamp,Model,Request tokens,Response tokens", "inf,m,1,2"],
            "line 2 of the trace has no number",
        ),
    ],
)
def test_what_is_no_trace_is_refused_by_line(lines: list[str], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read_trace(lines, MODELS, seed=0)

"""Arithmetic of the migration bench, and that a section which did not run gives no number."""

from __future__ import annotations

import asyncio
from importlib import import_module
from types import SimpleNamespace

import pytest

from benchmarks import migration
from benchmarks.cluster.options import Options
from benchmarks.migration.kills import p99
from benchmarks.migration.paper import later_seconds, rank
from benchmarks.migration.source import WINDOW_TOKENS_MIN, tokens_per_second
from benchmarks.migration.stage import Heard, tokens_come, wrong
from benchmarks.report import Goal


def test_every_target_has_one_section() -> None:
    goals = [
        goal.name
        for name in migration.SECTIONS
        for goal in import_module(f"benchmarks.migration.{name}").GOALS
    ]
    assert len(goals) == len(set(goals)) == 13
    assert all(name.startswith("migration.") for name in goals)


def test_a_section_that_does_not_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {
        f"benchmarks.migration.{name}": SimpleNamespace(
            GOALS=(Goal(f"migration.{name}_s", "s", "<=", 1),),
            measure=lambda report, _options, name=name: report.value(f"migration.{name}_s", [0.5], 1),
        )
        for name in ("moves", "kills")
    }
    monkeypatch.setattr(migration, "SECTIONS", ("moves", "kills"))
    monkeypatch.setattr("benchmarks.sections.import_module", sections.__getitem__)
    report = migration.run(Options(5, only=("kills",)))
    assert [(each["value"], each["ok"], "not_run" in each) for each in report.targets()] == [
        (None, False, True),
        (0.5, True, False),
    ]
    assert report.text().splitlines()[-2].split() == [
        "migration.moves_s", "not", "run", "s", "<=", "1", "miss",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no section drain;"):
        migration.run(Options(5, only=("drain",)))


@pytest.mark.parametrize(
    ("migrating", "found"),
    [
        (1.0, 1),  # best
        (1.09, 1),  # a tie with the best
        (1.11, 2),  # another way is better
        (9.0, 4),  # all are
    ],
)
def test_rank_is_by_medians_and_allows_ties(migrating: float, found: int) -> None:
    others = {"waiting": [5.0, 5.0, 0.1], "preempting": [1.0, 1.0, 9.0], "remotely": [3.0, 3.0, 3.0]}
    assert rank({"migration": [migrating] * 3, **others}, "migration") == found


def test_added_latency_is_told_token_by_token() -> None:
    alone = [float(at) for at in range(10)]
    slow_before = [2.0 * at for at in range(4)]  # what was before the order does not count
    came = [*slow_before, 7.0, 8.0, 11.5]
    assert later_seconds(came, alone, known=4) == pytest.approx((11.5 - 6.0) - 3.0)
    assert later_seconds(alone, alone, known=4) == 0


def test_a_rate_needs_enough_tokens() -> None:
    came = [at / 10 for at in range(100)]
    assert tokens_per_second(came, 2.0, 6.0) == pytest.approx(10, rel=0.03)
    with pytest.raises(ValueError, match="tell no rate"):
        tokens_per_second(came, 2.0, 2.0 + (WINDOW_TOKENS_MIN - 2) / 10)


async def test_a_stream_that_has_ended_is_not_waited_for() -> None:
    ended = Heard("", 1, 0.0, came=[1.0, 2.0], over=True)
    broken = Heard("", 1, 0.0, error="it broke")
    enough = Heard("", 1, 0.0, came=[1.0] * 5)
    await asyncio.wait_for(tokens_come([ended, broken, enough], 5), 30)


def test_p99_of_nothing_fails_every_target() -> None:
    assert p99([]) == float("inf")
    assert p99([float(at) for at in range(200)]) == 198


def stream(text: str, *, temperature: float = 0.0, gap: float = 1.0) -> Heard:
    return Heard("", 1, temperature, text=text, gaps=[gap] * len(text))


@pytest.mark.parametrize(
    ("temperature", "gap", "found"),
    [(0.0, 1.0, (1, 0)), (0.0, 5e-4, (1, 1)), (1.0, 5e-4, (1, 0))],
)
def test_only_a_near_tie_of_a_greedy_stream_excuses_a_difference(
    temperature: float, gap: float, found: tuple[int, int]
) -> None:
    reference = stream("abcdef", temperature=temperature, gap=gap)
    assert wrong([stream("abcdef")], [reference]) == (0, 0)
    assert wrong([stream("abcxyz", temperature=temperature)], [reference]) == found

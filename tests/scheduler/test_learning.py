"""What is learned follows a change and not a hiccup."""

from __future__ import annotations

import random

import pytest

from sllmd.scheduler.learning import Errors, Learned, Line, Mean, quantile


def test_the_first_measurement_replaces_the_assumption() -> None:
    rate = Learned(1e9)
    rate.observe(5e9)
    assert rate.value == 5e9


@pytest.mark.parametrize("factor", [0.1, 0.5, 2.0, 10.0])
def test_three_loads_bring_it_back_after_a_change(factor: float) -> None:
    chance = random.Random(1)
    rate = Learned(1e9)
    for _ in range(10):
        rate.observe(5e9 * chance.lognormvariate(0, 0.03))
    assert rate.value == pytest.approx(5e9, rel=0.05)
    for _ in range(3):
        rate.observe(5e9 * factor * chance.lognormvariate(0, 0.03))
    assert rate.value == pytest.approx(5e9 * factor, rel=0.15)


def test_one_hiccup_changes_little() -> None:
    rate = Learned(5e9)
    for seen in (5e9, 5e9, 1e9):
        rate.observe(seen)
    assert rate.value == pytest.approx(5e9, rel=0.25)
    for _ in range(4):
        rate.observe(5e9)
    assert rate.value == pytest.approx(5e9, rel=0.12)


def test_nonsense_is_ignored_and_caps_hold() -> None:
    rate = Learned(2e9, most=1e9)
    for seen in (0.0, -1.0, float("inf"), float("nan"), 3e9):
        rate.observe(seen)
    assert rate.value == 1e9
    rate.at_most(0.0)
    assert rate.value == 1e9


def test_a_line_is_found_and_follows() -> None:
    line = Line(0.001, 1.0)
    for tokens in (100, 500, 1000, 2000, 700):
        line.observe(tokens, 0.0004 * tokens + 0.05)
    assert (line.a, line.b) == (pytest.approx(0.0004), pytest.approx(0.05))
    for tokens in range(100, 2100, 50):
        line.observe(tokens, 0.0008 * tokens + 0.05)
    assert line.seconds(1500) == pytest.approx(0.0008 * 1500 + 0.05, rel=0.05)


def test_a_line_of_equal_samples_scales_what_was_assumed() -> None:
    line = Line(0.001, 0.0)
    for _ in range(3):
        line.observe(1000, 2.0)
    assert line.seconds(500) == pytest.approx(1.0)
    line.observe(-1, 1.0)
    line.observe(10, 0.0)
    assert line.seconds(500) == pytest.approx(1.0)


def test_a_mean_and_its_spread() -> None:
    mean = Mean(99.0)
    for seen in (1.0, 3.0, 1.0, 3.0):
        mean.observe(seen)
    assert (mean.value, mean.spread) == (pytest.approx(2.0), pytest.approx(1.0))


def test_errors_and_quantiles() -> None:
    errors = Errors()
    assert errors.quantile(0.5) is None
    for estimate in (1.0, 1.1, 0.8, 1.0, 1.0):
        errors.record(estimate, 1.0)
    assert errors.quantile(0.5) == 0
    assert errors.quantile(1.0) == pytest.approx(0.2)
    assert quantile([0.0, 10.0], 0.25) == 2.5

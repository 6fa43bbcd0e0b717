"""Durations as people write and read them."""

from __future__ import annotations

import math

import pytest

from sllmd.core.errors import ConfigError
from sllmd.core.units import format_age, parse_duration_seconds


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("1.5h", 5400),
        (" 7 ", 7),
        ("0", 0),
        (3, 3),
        (1e-5, 1e-5),
        (-1, math.inf),
        (-1.0, math.inf),
        ("-1", math.inf),
        ("-1m", math.inf),
        (math.inf, math.inf),
    ],
)
def test_durations(given: str | float, seconds: float) -> None:
    assert parse_duration_seconds(given) == seconds


NONE = ("", "soon", "-oops", "-", "-5m", "-1x", "- 1", "1e3", "5 m", "9" * 400)


@pytest.mark.parametrize("given", [*NONE, -2, -0.5, math.nan, 10**400, True, [1], None])
def test_no_durations(given: object) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        parse_duration_seconds(given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (271, "4m31s"),
        (3 * 3600 + 120, "3h02m"),
        (446_400, "5d04h"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert format_age(seconds) == text

"""Durations and sizes, as people write them and as code counts them."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer

from sllmd.core.errors import ConfigError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_FOR_EVER = re.compile(r"-1(\.0+)?(ms|s|m|h|d)?")


def parse_duration_seconds(given: str | int | float) -> float:
    """Seconds in ``"5m"``, ``"1h30m"``, ``"250ms"`` or a bare number of seconds; ``-1`` means for ever.

    Raises ConfigError when it is none of these.
    """
    text = str(given).strip()
    if given == math.inf or _FOR_EVER.fullmatch(text):
        return math.inf
    if isinstance(given, str) and re.fullmatch(f"({_DURATION.pattern})+", text):
        seconds = sum(float(number) * _SECONDS_PER_UNIT[unit] for number, unit in _DURATION.findall(text))
    elif isinstance(given, float) or re.fullmatch(r"\d+(\.\d+)?", text):
        seconds = float(text)
    else:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"`{text}` is not a duration", hint='write for example "90s", "5m" or "1h30m"')
    return seconds


Seconds = Annotated[
    float,
    BeforeValidator(parse_duration_seconds),
    PlainSerializer(lambda seconds: -1 if seconds == math.inf else seconds, when_used="json"),
]
"""A setting that may be for ever: -1 in JSON, which has no infinity."""
FiniteSeconds = Annotated[Seconds, Field(le=10 * 365 * 86400)]
"""A setting that ends: what sleeps or waits on a socket refuses infinity, and centuries."""
PositiveSeconds = Annotated[FiniteSeconds, Field(gt=0)]
"""A setting that ends, and for which nothing at all makes no sense."""


def format_bytes(count: float) -> str:
    """``count`` bytes for a person: three digits or so and a decimal unit, ``1.23 GB``."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.{2 if count < 10 * size else 1}f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """``seconds`` for a person: ``41 ms``, ``3.52 s``, ``4m31s``."""
    if seconds == float("inf"):
        return "for ever"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def format_age(seconds: float) -> str:
    """``seconds`` since something, for a person: ``4 s``, ``4m31s``, ``3h02m``, ``5d04h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    hours = whole // 3600
    return f"{hours // 24}d{hours % 24:02d}h" if hours >= 48 else format_seconds(whole)

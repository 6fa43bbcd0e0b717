"""Three plots of a comparison as one SVG, without any library. Pure.

A line chart needs a page of code here; a plotting library would bring numpy and some 60 MB for it. The
colours are those of Okabe and Ito, which people with other colour vision can tell apart, and each line is
dashed its own way besides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from sllmd.simulator.results import Result

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 520, 260, 64, 40, 84
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("", "6 3", "2 2", "8 3 2 3", "4 4", "1 3", "10 4")
_POINTS_MAX = 400

Line = Sequence[tuple[float, float]]


def svg(results: Mapping[str, Sequence[Result]]) -> str:
    """Startup latency as a CDF, cold starts, and utilisation over time, of each policy's runs."""
    height = 3 * (_HEIGHT + _GAP) + _TOP
    size = f'width="{_LEFT + _WIDTH + 150}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        _chart(0, "Startup latency: share of requests", "seconds", _cdfs(results)),
        _bars(1, "Cold starts: share of requests", _cold(results)),
        _chart(2, "Utilisation of devices", "seconds", _utilisation(results)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _cdfs(results: Mapping[str, Sequence[Result]]) -> dict[str, Line]:
    lines: dict[str, Line] = {}
    for policy, runs in results.items():
        seconds = sorted(value for run in runs for value in run.startup_seconds)
        step = max(1, len(seconds) // _POINTS_MAX)
        last = len(seconds) - 1
        places = sorted({*range(0, len(seconds), step), *([last] if seconds else [])})
        lines[policy] = [(seconds[place], (place + 1) / len(seconds)) for place in places]
    return lines


def _cold(results: Mapping[str, Sequence[Result]]) -> dict[str, float]:
    shares = {}
    for policy, runs in results.items():
        requests = sum(len(run.startup_seconds) for run in runs)
        shares[policy] = sum(run.cold for run in runs) / requests if requests else 0.0
    return shares


def _utilisation(results: Mapping[str, Sequence[Result]]) -> dict[str, Line]:
    """Of the first run: others have other bursts."""
    lines: dict[str, Line] = {}
    for policy, runs in results.items():
        run = runs[0]
        whole = run.devices * run.step_seconds
        lines[policy] = [
            (step * run.step_seconds, busy / whole) for step, busy in enumerate(run.busy_device_seconds)
        ]
    return lines


def _frame(place: int, title: str) -> tuple[float, list[str]]:
    top = _TOP + place * (_HEIGHT + _GAP)
    grid = []
    for step in range(5):
        y = top + _HEIGHT * (1 - step / 4)
        grid.append(f'<line x1="{_LEFT}" y1="{y}" x2="{_LEFT + _WIDTH}" y2="{y}" stroke="#ddd"/>')
        grid.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{step * 25} %</text>')
    return top, [f'<text x="{_LEFT}" y="{top - 12}" font-weight="bold">{escape(title)}</text>', *grid]


def _chart(place: int, title: str, unit: str, lines: Mapping[str, Line]) -> str:
    top, parts = _frame(place, title)
    most = max((x for line in lines.values() for x, _ in line), default=0.0) or 1.0
    below = top + _HEIGHT + 16
    for step in range(6):
        x = _LEFT + _WIDTH * step / 5
        parts.append(f'<text x="{x}" y="{below}" text-anchor="middle">{_tick(most * step / 5)}</text>')
    middle = _LEFT + _WIDTH / 2
    parts.append(f'<text x="{middle}" y="{below + 18}" text-anchor="middle">{escape(unit)}</text>')
    for index, (label, line) in enumerate(lines.items()):
        points = " ".join(
            f"{_LEFT + _WIDTH * x / most:.1f},{top + _HEIGHT * (1 - min(y, 1.0)):.1f}" for x, y in line
        )
        color, dash = _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"'
            f' stroke-dasharray="{dash}"/>'
        )
        parts.append(_key(top, index, label))
    return "\n".join(parts)


def _bars(place: int, title: str, shares: Mapping[str, float]) -> str:
    top, parts = _frame(place, title)
    width = _WIDTH / max(len(shares), 1)
    for index, (label, share) in enumerate(shares.items()):
        x, height = _LEFT + index * width + width * 0.2, _HEIGHT * min(share, 1.0)
        color = _COLORS[index % len(_COLORS)]
        y, below = top + _HEIGHT - height, top + _HEIGHT + 16
        middle = x + width * 0.3
        parts.append(f'<rect x="{x}" y="{y}" width="{width * 0.6}" height="{height}" fill="{color}"/>')
        parts.append(f'<text x="{middle}" y="{below}" text-anchor="middle">{escape(label)}</text>')
    return "\n".join(parts)


def _key(top: float, index: int, label: str) -> str:
    x, y = _LEFT + _WIDTH + 12, top + 14 + index * 18
    color, dash = _COLORS[index % len(_COLORS)], _DASHES[index % len(_DASHES)]
    return (
        f'<line x1="{x}" y1="{y}" x2="{x + 24}" y2="{y}" stroke="{color}" stroke-width="2"'
        f' stroke-dasharray="{dash}"/><text x="{x + 30}" y="{y + 4}">{escape(label)}</text>'
    )


def _tick(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or math.isclose(value, round(value)) else f"{value:.1f}"

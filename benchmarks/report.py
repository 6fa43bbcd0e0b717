"""Targets and rows, the table at the end, and the JSON that others read."""

from __future__ import annotations

import json
import operator
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_COMPARE = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Goal:
    """A target before it is measured."""

    name: str
    unit: str
    comparison: str
    bound: float


@dataclass
class Report:
    """What a bench found. A goal that was never given a value is a miss, as is one that could not be."""

    goals: Sequence[Goal]
    rows: list[dict[str, Any]] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    not_run: set[str] = field(default_factory=set)
    """Goals that nobody tried to measure this time."""

    def row(self, what: str, samples: Sequence[float], unit: str, **facts: object) -> None:
        """A measurement: median, least and most of its samples."""
        if not samples:
            self.rows.append({"what": what, "unit": unit, "median": None, "rounds": 0, **facts})
            return
        self.rows.append(
            {
                "what": what,
                "unit": unit,
                "median": statistics.median(samples),
                "min": min(samples),
                "max": max(samples),
                "rounds": len(samples),
                **facts,
            }
        )

    def value(self, name: str, samples: Sequence[float], rounds: int) -> None:
        """A goal's value: the median of its samples, one per round; fewer leave the goal missed."""
        if name not in {goal.name for goal in self.goals}:
            raise KeyError(name)
        if samples and len(samples) >= rounds:
            self.values[name] = statistics.median(samples)

    def targets(self) -> list[dict[str, Any]]:
        """One entry per goal, in their order."""
        return [
            {
                "name": goal.name,
                "value": self.values.get(goal.name),
                "unit": goal.unit,
                "target": f"{goal.comparison} {goal.bound:g}",
                "ok": self._passes(goal),
                **({"not_run": True} if goal.name in self.not_run else {}),
            }
            for goal in self.goals
        ]

    def passed(self) -> bool:
        """Whether every target is reached."""
        return all(self._passes(goal) for goal in self.goals)

    def write(self, path: Path) -> None:
        """The JSON form."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"targets": self.targets(), "rows": self.rows}, indent=2) + "\n")

    def text(self) -> str:
        """Rows, then targets, as aligned columns."""
        rows = [
            (row["what"], _number(row["median"]), row["unit"], _spread(row), str(row["rounds"]))
            for row in self.rows
        ]
        targets = [
            (
                target["name"],
                "not run" if "not_run" in target else _number(target["value"]),
                target["unit"],
                target["target"],
                "pass" if target["ok"] else "miss",
            )
            for target in self.targets()
        ]
        return (
            _columns([("measured", "median", "unit", "min..max", "rounds"), *rows])
            + "\n\n"
            + _columns([("name", "value", "unit", "target", "pass|miss"), *targets])
        )

    def _passes(self, goal: Goal) -> bool:
        value = self.values.get(goal.name)
        return value is not None and bool(_COMPARE[goal.comparison](value, goal.bound))


def ratios(numerators: dict[int, float], denominators: dict[int, float]) -> list[float]:
    """Quotients of what was measured in the same round, so that what drifts between rounds cancels."""
    return [numerators[key] / denominators[key] for key in numerators if key in denominators]


def rotated(names: Sequence[str], round_index: int) -> list[str]:
    """The same names, beginning with another one each round: nobody is always first after a pause."""
    shift = round_index % len(names)
    return [*names[shift:], *names[:shift]]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _spread(row: dict[str, Any]) -> str:
    return f"{_number(row['min'])}..{_number(row['max'])}" if "min" in row else "-"


def _columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )

"""``scripts/bench migration``: what a change of place costs its client, and what dying costs.

Real daemons, real engines: a small llama of random weights in float32, whose context is long enough. Two
nodes have it, a third takes the requests, so that any of the two may die. A section that fails is said aloud,
its goals are misses, and the others are still measured.
"""

from __future__ import annotations

import traceback
from importlib import import_module

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Goal, Report

SECTIONS = ("moves", "kills", "drains", "rolling", "simulation")
"""Modules here: each has GOALS and ``measure(report, options)``."""
UNMEASURED = (
    Goal("migration.source_ratio", "ratio", ">=", 0.9),
    Goal("migration.paper_rank", "rank", "<=", 1),
)
"""Targets that no section measures yet: misses."""


def run(options: Options) -> Report:
    """The chosen sections, all without a choice. Goals of those not chosen stay without a value: misses."""
    sections = {name: import_module(f"benchmarks.migration.{name}") for name in SECTIONS}
    unknown = set(options.only) - set(SECTIONS)
    if unknown:
        raise ValueError(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    report = Report([*(goal for section in sections.values() for goal in section.GOALS), *UNMEASURED])
    for name in [each for each in SECTIONS if not options.only or each in options.only]:
        log(f"migration: {name}")
        try:
            sections[name].measure(report, options)
        except Exception:  # noqa: BLE001  a section that crashed is a miss, and says why
            log(f"migration: {name} failed\n{traceback.format_exc()}")
    return report

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
from benchmarks.report import Report

SECTIONS = ("moves", "source", "kills", "cold", "drains", "rolling", "simulation", "paper")
"""Modules here: each has GOALS and ``measure(report, options)``."""


def run(options: Options) -> Report:
    """The chosen sections, all without a choice. Goals of the others have no value and say so: misses."""
    sections = {name: import_module(f"benchmarks.migration.{name}") for name in SECTIONS}
    unknown = set(options.only) - set(SECTIONS)
    if unknown:
        raise ValueError(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    report = Report([goal for section in sections.values() for goal in section.GOALS])
    for name in SECTIONS:
        if options.only and name not in options.only:
            report.not_run |= {goal.name for goal in sections[name].GOALS}
            continue
        log(f"migration: {name}")
        try:
            sections[name].measure(report, options)
        except Exception:  # noqa: BLE001  a section that crashed is a miss, and says why
            log(f"migration: {name} failed\n{traceback.format_exc()}")
    return report

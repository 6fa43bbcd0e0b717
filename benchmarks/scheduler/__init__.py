"""``scripts/bench scheduler``: how long decisions take, what they are worth, and what daemons make of them.

``decisions`` and ``worth`` run the scheduler's own functions on views and virtual clusters; the others run
real daemons with fake engines, whose paths are capped. A section that fails is said aloud, its goals are
misses, and the others are still measured.
"""

from __future__ import annotations

import traceback
from importlib import import_module

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Report

SECTIONS = ("decisions", "worth", "estimator", "plans", "bursts", "failover", "crowds")
"""Modules here: each has GOALS and ``measure(report, options)``."""


def run(options: Options) -> Report:
    """The chosen sections, all without a choice. Goals of the others have no value and say so: misses."""
    sections = {name: import_module(f"benchmarks.scheduler.{name}") for name in SECTIONS}
    unknown = set(options.only) - set(SECTIONS)
    if unknown:
        raise ValueError(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    report = Report([goal for section in sections.values() for goal in section.GOALS])
    for name in SECTIONS:
        if options.only and name not in options.only:
            report.not_run |= {goal.name for goal in sections[name].GOALS}
            continue
        log(f"scheduler: {name}")
        try:
            sections[name].measure(report, options)
        except Exception:  # noqa: BLE001  a section that crashed is a miss, and says why
            log(f"scheduler: {name} failed\n{traceback.format_exc()}")
    return report

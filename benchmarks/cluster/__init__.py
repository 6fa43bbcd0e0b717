"""``scripts/bench cluster``: what a cluster of daemons costs, and what it survives.

Each section measures one thing with real processes on this machine, or with the simulators that the tests
use, and gives its goals their values. A section that fails is said aloud, its goals are misses, and the
others are still measured.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from importlib import import_module

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Report

SECTIONS = (
    "chunks",
    "commits",
    "failover",
    "restarts",
    "partitions",
    "relay",
    "idle",
    "members",
    "simulation",
    "storm",
)
"""Modules here: each has GOALS and ``measure(report, options)``."""


def run(options: Options) -> Report:
    """The chosen sections, all without a choice. Goals of those not chosen stay without a value: misses."""
    sections = {name: import_module(f"benchmarks.cluster.{name}") for name in SECTIONS}
    report = Report([goal for section in sections.values() for goal in section.GOALS])
    for name in chosen(options.only):
        log(f"cluster: {name}")
        try:
            sections[name].measure(report, options)
        except Exception:  # noqa: BLE001  a section that crashed is a miss, and says why
            log(f"cluster: {name} failed\n{traceback.format_exc()}")
    return report


def chosen(only: Sequence[str]) -> list[str]:
    """Sections by name, in their order. Raises ValueError for a name that is none."""
    unknown = set(only) - set(SECTIONS)
    if unknown:
        raise ValueError(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if not only or name in only]

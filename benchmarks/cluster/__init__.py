"""``scripts/bench cluster``: what a cluster of daemons costs, and what it survives.

Each section measures one thing with real processes on this machine, or with the simulators that the tests
use, and gives its goals their values. A section that fails is said aloud, its goals are misses, and the
others are still measured.
"""

from __future__ import annotations

from benchmarks.cluster.options import Options
from benchmarks.report import Report
from benchmarks.sections import run_sections

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
"""Modules here: see ``benchmarks.sections``."""


def run(options: Options) -> Report:
    """The chosen sections, all without a choice."""
    return run_sections(__name__, SECTIONS, options)

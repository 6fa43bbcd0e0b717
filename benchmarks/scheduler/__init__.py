"""``scripts/bench scheduler``: how long decisions take, what they are worth, and what daemons make of them.

``decisions`` and ``worth`` run the scheduler's own functions on views and virtual clusters; the others run
real daemons with fake engines, whose paths are capped. A section that fails is said aloud, its goals are
misses, and the others are still measured.
"""

from __future__ import annotations

from benchmarks.cluster.options import Options
from benchmarks.report import Report
from benchmarks.sections import run_sections

SECTIONS = ("decisions", "worth", "estimator", "plans", "bursts", "failover", "crowds")
"""Modules here: see ``benchmarks.sections``."""


def run(options: Options) -> Report:
    """The chosen sections, all without a choice."""
    return run_sections(__name__, SECTIONS, options)

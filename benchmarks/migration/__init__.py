"""``scripts/bench migration``: what a change of place costs its client, and what dying costs.

Real daemons, real engines: a small llama of random weights in float32, whose context is long enough. Two
nodes have it, a third takes the requests, so that any of the two may die. A section that fails is said aloud,
its goals are misses, and the others are still measured.
"""

from __future__ import annotations

from benchmarks.cluster.options import Options
from benchmarks.report import Report
from benchmarks.sections import run_sections

SECTIONS = ("moves", "source", "kills", "cold", "drains", "rolling", "simulation", "paper")
"""Modules here: see ``benchmarks.sections``."""


def run(options: Options) -> Report:
    """The chosen sections, all without a choice."""
    return run_sections(__name__, SECTIONS, options)

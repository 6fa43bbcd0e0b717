"""The machines of a move, in worlds where everything fails in every phase: ``tests/simulation/migration``."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from itertools import product

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Goal, Report
from tests.simulation.migration.world import WHATS, WHENS, World

GOALS = (Goal("migration.sim_violations", "violations", "<=", 0),)
SEEDS = 2000


def measure(report: Report, options: Options) -> None:
    """Every failure in every phase, with so many seeds."""
    cases = list(product(WHENS, WHATS))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(_play, cases, [options.seeds] * len(cases)))
    violations = [violation for each in found for violation in each]
    for violation in violations[:20]:
        log(violation)
    report.row("violations", [len(violations)], "violations", worlds=len(cases) * options.seeds)
    if options.seeds >= SEEDS:
        report.value("migration.sim_violations", [len(violations)], 1)


def _play(case: tuple[str, str], seeds: int) -> list[str]:
    when, what = case
    worlds = ((seed, World(seed, when, what).run()) for seed in range(seeds))  # type: ignore[arg-type]
    return [f"seed {seed}, {what}, {when}: {wrong}" for seed, found in worlds for wrong in found]

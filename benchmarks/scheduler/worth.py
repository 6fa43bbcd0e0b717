"""What decisions are worth on virtual clusters.

The paper's setting, ten seeds, every policy on the same traces. ``p99_vs_best_baseline`` is the geometric
mean, over sizes and rates, of the best baseline's P99 over ours (each a mean over seeds); the rows show every
cell, and ``reactive``, which is ours without lifting models ahead of need. ``oracle_gap`` is the worst
cell's. The public trace over 64 nodes is in the rows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Goal, Report
from sllmd.simulator.hardware import KINDS, Hardware
from sllmd.simulator.paper import BASELINES, cells
from sllmd.simulator.results import Result, Summary, summarise
from sllmd.simulator.simulation import simulate
from sllmd.simulator.traces import read_azure

GOALS = (
    Goal("scheduler.p99_vs_best_baseline", "ratio", ">=", 1.3),
    Goal("scheduler.oracle_gap", "ratio", "<=", 0.10),
)
SEEDS = 10
AZURE = Path(__file__).parents[2] / "tests" / "data" / "azure-llm-2023-code-trimmed.csv"


def measure(report: Report, options: Options) -> None:
    """The paper's setting, and the public trace."""
    _paper(report, options.rounds)
    _azure(report)


def _paper(report: Report, rounds: int) -> None:
    ratios, gaps = [], []
    for cell in cells():
        log(f"scheduler: {cell.kind} at {cell.requests_per_second}/s")
        found: dict[str, Summary] = {}
        for policy in ("startup", "reactive", "oracle", *BASELINES):
            runs = [cell.run(policy, seed) for seed in range(SEEDS)]
            found[policy] = summarise(runs)
            _row(report, f"{cell.kind} {cell.requests_per_second}/s {policy}", runs, found[policy])
        best = min(found[policy].p99.mean for policy in BASELINES)
        ratios.append(best / found["startup"].p99.mean)
        gaps.append(found["startup"].mean.mean / found["oracle"].mean.mean - 1)
        reactive = best / found["reactive"].p99.mean
        report.row(
            f"{cell.kind} {cell.requests_per_second}/s: best baseline over ours", [ratios[-1]], "ratio"
        )
        report.row(
            f"{cell.kind} {cell.requests_per_second}/s: best baseline over reactive", [reactive], "ratio"
        )
    report.value("scheduler.p99_vs_best_baseline", [statistics.geometric_mean(ratios)] * rounds, rounds)
    report.value("scheduler.oracle_gap", [max(gaps)] * rounds, rounds)


def _row(report: Report, what: str, runs: Sequence[Result], summary: Summary) -> None:
    p99 = [run.p(0.99) for run in runs if run.startup_seconds]
    facts = {name: value for name, value in summary.as_json().items() if name != "policy"}
    report.row(f"{what}: P99", p99, "s", **facts)


def _azure(report: Report) -> None:
    """The public trace over 64 nodes of the same kind, models by popularity."""
    kind = KINDS["opt-6.7b"]
    served = [(kind, kind.model(index)) for index in range(256)]
    lines = [line for line in AZURE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    trace = read_azure(lines, [model.name for _, model in served], seed=0)
    for policy in ("startup", "reactive", *BASELINES):
        log(f"scheduler: Azure trace, {policy}")
        result = simulate(Hardware(nodes=64), served, trace, policy, 0)
        assert not math.isnan(result.mean())
        _row(report, f"azure 64 nodes {policy}", [result], summarise([result]))

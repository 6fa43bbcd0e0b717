"""The storm: five daemons in network namespaces, three minutes of misfortune, and the verdict."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Goal, Report
from tests.storm.namespaces import why_no_namespaces
from tests.storm.nemesis import KINDS
from tests.storm.storm import storm

GOALS = (
    Goal("cluster.storm_faults", "faults", "<=", 0),
    Goal("cluster.storm_operations", "operations", ">=", 5000),
    Goal("cluster.storm_answered", "share", ">=", 0.99),
)
SECONDS = 180.0
EACH = 10


def measure(report: Report, options: Options) -> None:
    """One storm. A fault: a history without an explanation, a lost write, or too little of it all."""
    reason = why_no_namespaces()
    if reason is not None:
        raise RuntimeError(reason)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        verdict = storm(Path(directory), seconds=SECONDS, each=EACH, seed=options.storm_seed)
    log(verdict.text())
    report.row("storm: lasted", [verdict.seconds], "s")
    for kind in KINDS:
        report.row(f"storm: {kind}", [verdict.misfortunes[kind]], "times")
    for what, count in sorted(verdict.notes.counts.items()):
        report.row(f"storm: {what}", [count], "times")
    report.value("cluster.storm_faults", [len(verdict.faults)], 1)
    report.value("cluster.storm_operations", [verdict.notes.operations], 1)
    report.value("cluster.storm_answered", [verdict.notes.answered_share()], 1)

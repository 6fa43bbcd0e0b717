"""``scripts/bench``: measure, print the rows and the targets, write JSON, and tell by the exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from pathlib import Path

from benchmarks.cluster.options import Options
from benchmarks.pages import huge_pages
from benchmarks.report import Report

_WITH_OPTIONS = ("cluster", "scheduler", "migration")
"""Benches of sections that can be chosen."""
ROUNDS_MIN = 5
"""Fewer are for trying the harness; no claim rests on them."""


def main() -> int:
    """0: every target is reached. 1: one is missed. 2: nothing could be measured."""
    given = _parser().parse_args()
    if os.geteuid() != 0:
        print(
            "scripts/bench drops the page cache and makes network namespaces: run it as root", file=sys.stderr
        )
        return 2
    if given.rounds < ROUNDS_MIN:
        print(f"only a trial: {given.rounds} of at least {ROUNDS_MIN} rounds", file=sys.stderr)
    # SIGTERM unwinds as Ctrl-C does, so that servers go and the page setting comes back.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with huge_pages():
        report = _run(given)
    print(report.text())
    if given.json:
        report.write(given.json)
    return 0 if report.passed() and given.rounds >= ROUNDS_MIN else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("bench", choices=["load", "coldstart", "serve", "cluster", "scheduler", "migration"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write targets and rows there")
    parser.add_argument("--rounds", type=int, default=ROUNDS_MIN)
    cluster = parser.add_argument_group("cluster, scheduler, migration")
    defaults = Options(ROUNDS_MIN)
    cluster.add_argument("--only", nargs="+", default=[], metavar="SECTION", help="the others are misses")
    cluster.add_argument("--seeds", type=int, default=defaults.seeds, help="of the simulator")
    cluster.add_argument("--storm", action="store_true", help="the storm alone; the others are misses")
    cluster.add_argument("--storm-seed", type=int, default=defaults.storm_seed, help="another storm")
    cluster.add_argument("--minutes", type=float, default=defaults.minutes, help="of bursts (scheduler)")
    cluster.add_argument("--kills", type=int, default=defaults.kills, help="of what runs streams (migration)")
    return parser


def _run(given: argparse.Namespace) -> Report:
    bench = importlib.import_module(f"benchmarks.{given.bench}")
    only = ("storm",) if given.storm else tuple(given.only)
    options = Options(given.rounds, only, given.seeds, given.storm_seed, given.minutes, given.kills)
    report: Report = bench.run(options if given.bench in _WITH_OPTIONS else given.rounds)
    return report


if __name__ == "__main__":
    sys.exit(main())

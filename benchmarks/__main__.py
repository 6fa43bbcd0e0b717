"""``scripts/bench``: measure, print the rows and the targets, write JSON, and tell by the exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from pathlib import Path

from benchmarks.pages import huge_pages

ROUNDS_MIN = 5
"""Fewer are for trying the harness; no claim rests on them."""


def main() -> int:
    """0: every target is reached. 1: one is missed. 2: nothing could be measured."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("bench", choices=["load", "coldstart", "serve"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write targets and rows there")
    parser.add_argument("--rounds", type=int, default=ROUNDS_MIN)
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("scripts/bench drops the page cache, so it must run as root", file=sys.stderr)
        return 2
    if given.rounds < ROUNDS_MIN:
        print(f"only a trial: {given.rounds} of at least {ROUNDS_MIN} rounds", file=sys.stderr)
    # SIGTERM unwinds as Ctrl-C does, so that servers go and the page setting comes back.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with huge_pages():
        report = importlib.import_module(f"benchmarks.{given.bench}").run(given.rounds)
    print(report.text())
    if given.json:
        report.write(given.json)
    return 0 if report.passed() and given.rounds >= ROUNDS_MIN else 1


if __name__ == "__main__":
    sys.exit(main())

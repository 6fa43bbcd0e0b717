"""``sllmd simulate``."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import RunCommand

SMALL = ("--models", "4", "--seconds", "60", "--rate", "0.5", "--nodes", "2", "--devices", "2")
AZURE = Path(__file__).parent.parent / "data" / "azure-llm-2023-code-trimmed.csv"


def test_policies_are_compared_in_a_table(sllmd: RunCommand) -> None:
    outcome = sllmd("simulate", *SMALL, "--policy", "startup", "--policy", "random")
    assert outcome.code == 0
    head, first, second = outcome.out.splitlines()
    assert head.split()[:5] == ["POLICY", "REQUESTS", "MEAN", "P50", "P95"]
    assert (first.split()[0], second.split()[0]) == ("startup", "random")


def test_json_repeats_per_seed_and_the_plot_is_written(sllmd: RunCommand, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    arguments = ("simulate", *SMALL, "--seeds", "2", "--plot", str(plot), "-o", "json")
    first, second = sllmd(*arguments), sllmd(*arguments)
    assert first.out == second.out
    rows = json.loads(first.out)
    assert {row["policy"] for row in rows} >= {"startup", "locality", "shepherd", "download"}
    assert plot.read_text().startswith("<svg")


def test_a_trace_is_replayed(sllmd: RunCommand) -> None:
    outcome = sllmd("simulate", "--trace", str(AZURE), "--policy", "startup", "--nodes", "8", "-o", "json")
    [row] = json.loads(outcome.out)
    assert (row["requests"], row["failed"]) == (1000, 0)


def test_what_is_wrong_is_said(sllmd: RunCommand, tmp_path: Path) -> None:
    assert sllmd("simulate", "--policy", "best").code == 2
    assert "startup" in sllmd("simulate", "--policy", "best").err
    missing = sllmd("simulate", "--trace", str(tmp_path / "none.csv"))
    assert missing.code == 4
    assert "none.csv is not there" in missing.err

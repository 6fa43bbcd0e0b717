"""Sections of the cluster bench: every target has one section that gives it, and a crash is a miss."""

from importlib import import_module
from types import SimpleNamespace

import pytest

from benchmarks import cluster
from benchmarks.cluster.options import Options
from benchmarks.sections import chosen


def test_targets_have_one_section_each():
    names = [
        goal.name for name in cluster.SECTIONS for goal in import_module(f"benchmarks.cluster.{name}").GOALS
    ]
    assert len(names) == len(set(names))
    assert all(name.startswith("cluster.") for name in names)


def test_sections_are_chosen_by_name():
    assert chosen(cluster.SECTIONS, []) == list(cluster.SECTIONS)
    assert chosen(cluster.SECTIONS, ["storm", "chunks"]) == ["chunks", "storm"]
    with pytest.raises(ValueError, match="no section chunk;"):
        chosen(cluster.SECTIONS, ["chunk"])


def test_a_section_that_fails_is_a_miss_and_the_others_are_measured(monkeypatch):
    goals = import_module("benchmarks.cluster.chunks").GOALS

    def crash(_report, _options):
        raise RuntimeError("no")

    sections = {
        "benchmarks.cluster.bad": SimpleNamespace(GOALS=goals[:1], measure=crash),
        "benchmarks.cluster.good": SimpleNamespace(
            GOALS=goals[1:2], measure=lambda report, _: report.value(goals[1].name, [1.0], 1)
        ),
    }
    monkeypatch.setattr(cluster, "SECTIONS", ("bad", "good"))
    monkeypatch.setattr("benchmarks.sections.import_module", sections.__getitem__)
    report = cluster.run(Options(5))
    assert [target["ok"] for target in report.targets()] == [False, True]

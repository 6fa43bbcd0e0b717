"""The scheduler's bench measures what it says, and decisions stay linear in the nodes."""

from __future__ import annotations

import pytest

from benchmarks.scheduler import decisions as timed
from benchmarks.scheduler.decisions import GB, busy_cluster, decision_seconds, update_seconds
from sllmd.scheduler.decisions import Load
from sllmd.scheduler.facts import Request
from sllmd.scheduler.learning import quantile
from sllmd.scheduler.placement import place


def test_the_view_is_full_so_that_decisions_need_victims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed, "MODELS", 500)
    keeper, names = busy_cluster(8, 0)
    room = [node.free[0] >= 30 * GB for node in keeper.view.nodes.values()]
    assert sum(room) <= len(room) / 2
    decisions = [place(keeper.view, Request("q", name, 10.0), 10.0).decision for name in names[:100]]
    assert any(isinstance(each, Load) and each.victims for each in decisions)


@pytest.mark.slow
def test_eight_times_the_nodes_take_no_more_than_eight_times_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a margin for a machine that does other things; the bench holds the real bounds."""
    monkeypatch.setattr(timed, "MODELS", 2000)
    monkeypatch.setattr(timed, "DECISIONS", 150)
    small, large = (quantile(decision_seconds(nodes, 1), 0.9) for nodes in (125, 1000))
    assert large / small < 12
    assert quantile(update_seconds(1), 0.9) < 500e-6

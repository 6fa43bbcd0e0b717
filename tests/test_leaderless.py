"""Leaders of real daemons that die or freeze with requests in hand: none is lost, nothing starts twice.

What is on its way to a node that is stopped (SIGSTOP) stays on its way until it goes on: so a leader can be
killed after it has agreed on a start and before anybody has begun it, however fast or slow the machine is.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.test_placed import Nodes, _ask, starting, three
from tests.waiting import until

pytestmark = pytest.mark.slow


@contextmanager
def stopped(nodes: Nodes, name: str) -> Iterator[None]:
    """Nothing happens in that node's daemon meanwhile."""
    pid = nodes.up[name].process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def agreed(nodes: Nodes, name: str, model: str, target: str) -> bool:
    """Whether that node knows that a replica shall be on ``target``."""
    happened = nodes.up[name].ask("/sllmd/v1/events?follow=false&newest=1000").raw.decode()
    return f"{model} on {target}: requested (agreed)" in happened


def served(nodes: Nodes, model: str) -> int:
    """How often a replica of it has come up anywhere."""
    lines = (line for daemon in nodes.up.values() for line in daemon.log())
    return sum(line["event"] == "replica serves" and line["model"] == model for line in lines)


def explained(nodes: Nodes, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What that node's last request was decided by, and the names of the nodes."""
    found = nodes.up[name].ask("/sllmd/v1/requests/last").body
    [generation] = found["generations"]
    return generation["decision"], found["names"]


def test_requests_outlive_leaders_that_die_or_freeze_with_them(tmp_path: Path) -> None:
    with three(tmp_path) as nodes, ThreadPoolExecutor(1) as threads:
        _killed_between_intent_and_command(nodes, threads)
        _frozen_and_awake_again(nodes, threads)


def _killed_between_intent_and_command(nodes: Nodes, threads: ThreadPoolExecutor) -> None:
    leads, target, asked = _cast(nodes, "agreed")
    with stopped(nodes, target):
        answer = _ask(nodes, threads, asked, "agreed")
        until(lambda: agreed(nodes, asked, "agreed", target), "it is agreed")
        nodes.kill(leads)
    assert answer.result().status == 200
    decision, names = explained(nodes, asked)
    assert names[decision["leader"]] in (target, asked)
    assert decision["refusals"][0].startswith(f"{leads}, which led in epoch ")
    assert served(nodes, "agreed") == 1
    nodes.begin(leads)


def _frozen_and_awake_again(nodes: Nodes, threads: ThreadPoolExecutor) -> None:
    """To itself no time has passed: it goes on with what it was asked, and nobody takes its orders."""
    leads, target, asked = _cast(nodes, "frozen")
    with stopped(nodes, leads):
        answer = _ask(nodes, threads, asked, "frozen")
        assert answer.result().status == 200
    decision, names = explained(nodes, asked)
    assert names[decision["leader"]] in (target, asked)
    assert nodes.leader() == names[decision["leader"]], "who was frozen follows"
    assert served(nodes, "frozen") == 1
    assert not starting(nodes.up[leads], "frozen")


def _cast(nodes: Nodes, model: str) -> tuple[str, str, str]:
    """Who leads, where it would load the model, and the third, which can take requests for it by itself."""
    leads = nodes.leader()
    others = [name for name in nodes.up if name != leads]
    nodes.give(model, *others)
    target = nodes.plan(model)[0]["node"]
    others.remove(target)
    return leads, target, others[0]

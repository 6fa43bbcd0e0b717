"""Where real daemons start cold models, and what becomes of a request when those who decided on it die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live import FAKE, Answer, LiveDaemon, announced, put_model, start
from tests.waiting import until

pytestmark = pytest.mark.slow

NAMES = ("a", "b", "c")
SLOW = {"build_seconds": 3.0, "token_ids": [64, 90]}
"""Long enough for a test to do something meanwhile."""
PEERS_ARE_SLOW = "[scheduler]\nbandwidth_max_bytes = { peer = 1000 }\n"
"""In estimates: a checkpoint of a test comes from another node as soon as from a disk, otherwise."""


class Nodes:
    """Three voters; each may be killed and begun again."""

    def __init__(self, directory: Path, rooms: ExitStack) -> None:
        self._directory = directory
        self._rooms = rooms
        self.up: dict[str, LiveDaemon] = {}

    def begin(self, name: str) -> None:
        """The same name again is the same node."""
        join = {"cluster.join": address(self.any())} if self.up else {}
        settings = {**FAKE, "workers.in_process": True, "node.name": name, **join}
        daemon = start(self._directory / name, settings, config=PEERS_ARE_SLOW)
        self._rooms.callback(_kill, daemon)
        announced(daemon)
        self.up[name] = daemon

    def kill(self, name: str) -> None:
        """kill -9."""
        _kill(self.up.pop(name))

    def any(self) -> LiveDaemon:
        return next(iter(self.up.values()))

    def leader(self) -> str:
        """Once all who are up agree."""
        found: set[str | None] = set()

        def agreed() -> bool:
            found.clear()
            found.update(members(daemon).get("leader") for daemon in self.up.values())
            return len(found) == 1 and found <= self.up.keys()

        until(agreed, "all agree on who leads", 60)
        return str(found.pop())

    def give(self, model: str, *names: str) -> None:
        """Import a model on these nodes while they run, until the leader could start it there."""
        for name in names:
            put_model(self._directory / name, model, SLOW)
        until(lambda: {row["node"] for row in self.plan(model) if row["source"] == "ssd"} == set(names),
              "the leader knows who has it", 60)  # fmt: skip

    def plan(self, model: str) -> list[dict[str, Any]]:
        """The ways to it, the best first, with the nodes' names."""
        answer = self.any().ask(f"/sllmd/v1/models/{model}/plan")
        if answer.status != 200:
            return []
        ways, names = answer.body["plan"]["ways"], answer.body["names"]
        return [{**way, "node": names[way["node"]]} for way in ways]


def _kill(daemon: LiveDaemon) -> None:
    for pid in daemon.family():
        os.kill(pid, signal.SIGKILL)
    daemon.process.wait()


@contextmanager
def three(directory: Path) -> Iterator[Nodes]:
    with ExitStack() as rooms:
        nodes = Nodes(directory, rooms)
        for name in NAMES:
            nodes.begin(name)
        until(lambda: len(members(nodes.any())["control"]["voters"]) == len(NAMES), "all vote", 60)
        yield nodes


def members(daemon: LiveDaemon) -> dict[str, Any]:
    return daemon.ask("/sllmd/v1/members").body


def address(daemon: LiveDaemon) -> str:
    [me] = [member for member in members(daemon)["members"] if member["is_me"]]
    return str(me["address"])


def starting(daemon: LiveDaemon, model: str) -> bool:
    """Whether a replica is on its way up there."""
    return any(each["model"] == model for each in daemon.status()["replicas"])


def decided_for(daemon: LiveDaemon) -> str | None:
    """The name of the node that the leader chose for the last request that this one took."""
    found = daemon.ask("/sllmd/v1/requests/last").body
    [generation] = found["generations"]
    decision = generation["decision"]
    return found["names"][decision["node"]] if decision is not None else None


def test_cold_requests_are_placed_and_outlive_those_who_placed_them(tmp_path: Path) -> None:
    with three(tmp_path) as nodes, ThreadPoolExecutor(1) as threads:
        _as_planned(nodes)
        _server_dies_after_it_accepted(nodes, threads)
        _leader_dies_before_it_answers(nodes, threads)
        _leader_dies_while_it_loads(nodes, threads)
        _nobody_leads(nodes)


def _as_planned(nodes: Nodes) -> None:
    """It starts where the plan's first line says, for the reasons that are told afterwards."""
    leads = nodes.leader()
    [has_it, asked] = [name for name in nodes.up if name != leads]
    nodes.give("planned", has_it)
    first, *others = nodes.plan("planned")
    assert (first["node"], first["way"], first["source"]) == (has_it, "load", "ssd")
    assert all(way["total_seconds"] >= first["total_seconds"] for way in others)
    answer = nodes.up[asked].complete("planned", max_tokens=1)
    assert (answer.status, answer.headers["X-Sllmd-Ran-On"], answer.headers["X-Sllmd-Cold"]) == (
        200,
        has_it,
        "1",
    )
    [generation] = nodes.up[asked].ask("/sllmd/v1/requests/last").body["generations"]
    assert generation["decision"]["ways"][0]["why"] == "chosen"
    assert generation["load_ms"] >= SLOW["build_seconds"] * 1000
    until(lambda: nodes.plan("planned")[0]["way"] == "use", "the leader knows how long it took")
    # What this load took is what the next one is expected to take.
    nodes.up[has_it].ask("/sllmd/v1/models/planned/unload", {})
    until(lambda: nodes.plan("planned")[0]["way"] == "load", "it is cold again")
    [again] = [way for way in nodes.plan("planned") if way["node"] == has_it]
    assert again["total_seconds"] >= SLOW["build_seconds"] * 0.9


def _server_dies_after_it_accepted(nodes: Nodes, threads: ThreadPoolExecutor) -> None:
    """The request is planned again, elsewhere."""
    leads = nodes.leader()
    servers = [name for name in nodes.up if name != leads]
    nodes.give("twice", *servers)
    answer = _ask(nodes, threads, leads, "twice")
    chosen = _where_it_starts(nodes, "twice")
    [other] = [name for name in servers if name != chosen]
    nodes.kill(chosen)
    assert (answer.result().status, answer.result().headers["X-Sllmd-Ran-On"]) == (200, other)
    assert decided_for(nodes.up[leads]) == other
    nodes.begin(chosen)


def _leader_dies_before_it_answers(nodes: Nodes, threads: ThreadPoolExecutor) -> None:
    """Who waited for its decision decides alone."""
    leads = nodes.leader()
    survivors = [name for name in nodes.up if name != leads]
    nodes.give("undecided", *survivors)
    os.kill(nodes.up[leads].process.pid, signal.SIGSTOP)
    answer = _ask(nodes, threads, survivors[0], "undecided")
    nodes.kill(leads)
    assert answer.result().status == 200
    nodes.begin(leads)


def _leader_dies_while_it_loads(nodes: Nodes, threads: ThreadPoolExecutor) -> None:
    """What it ordered goes on, once."""
    leads = nodes.leader()
    [has_it, asked] = [name for name in nodes.up if name != leads]
    nodes.give("ordered", has_it)
    answer = _ask(nodes, threads, asked, "ordered")
    until(lambda: starting(nodes.up[has_it], "ordered"), "the order is carried out")
    nodes.kill(leads)
    assert (answer.result().status, answer.result().headers["X-Sllmd-Ran-On"]) == (200, has_it)
    served = [line for line in nodes.up[has_it].log() if line["event"] == "replica serves"]
    assert [line["model"] for line in served].count("ordered") == 1
    assert not starting(nodes.up[asked], "ordered")


def _nobody_leads(nodes: Nodes) -> None:
    """Of three voters one is left: it starts a cold model on its own devices."""
    left, other = nodes.up
    nodes.give("alone", left)
    nodes.kill(other)
    until(lambda: members(nodes.up[left])["leader"] is None, "nobody leads", 60)
    answer = nodes.up[left].complete("alone", max_tokens=1)
    assert (answer.status, answer.headers["X-Sllmd-Cold"]) == (200, "1")
    assert decided_for(nodes.up[left]) is None


def _ask(nodes: Nodes, threads: ThreadPoolExecutor, name: str, model: str) -> Future[Answer]:
    """A request through that node, which has it in hand when this returns."""
    daemon = nodes.up[name]
    answer = threads.submit(daemon.complete, model, max_tokens=1)
    until(lambda: any(each["model"] == model for each in daemon.requests()) or answer.done(), "it has come")
    return answer


def _where_it_starts(nodes: Nodes, model: str) -> str:
    found: list[str] = []

    def begun() -> bool:
        found[:] = [name for name, daemon in nodes.up.items() if starting(daemon, model)]
        return bool(found)

    until(begun, "somebody starts it")
    return found[0]

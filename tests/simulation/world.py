"""A simulated cluster: one seed decides everything that happens in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from random import Random
from typing import Any

from sllmd.cluster.raft.entries import NOTHING, founding, membership
from sllmd.cluster.raft.events import Action, Event
from sllmd.core.ids import NodeId
from tests.simulation.clients import Client
from tests.simulation.clock import Clock
from tests.simulation.host import Host
from tests.simulation.linearizability import Operation, explain
from tests.simulation.nemesis import Nemesis
from tests.simulation.network import Network
from tests.simulation.oracle import DurableLog, Oracle, Violation, require

EVENTS_MAX = 100_000
"""Ten times what a run takes: a machine that answers answers with answers is found, not waited for."""


class World(Clock):
    """Hosts, a network between them, and a heap of things that will happen."""

    def __init__(
        self, seed: int, *, voters: int, spares: int = 0, host_class: type[Host] = Host, trace: bool = False
    ) -> None:
        super().__init__()
        self.seed = seed
        self.random = Random(seed)
        self.events = 0
        self.acknowledged = 0
        self.history: list[Operation] = []
        self.clients: list[Client] = []
        self.clients_stopped = False
        self.client_pause_seconds = 0.08
        self._trace = trace
        self.oracle = Oracle()
        self.network = Network(self)
        nodes = [NodeId(f"n{number}") for number in range(1, voters + spares + 1)]
        founded = founding(membership(set(nodes[:voters]), set()))
        self.oracle.durable = {node: DurableLog() for node in nodes}
        self.hosts = {
            node: host_class(self, node, founded if place < voters else NOTHING)
            for place, node in enumerate(nodes)
        }
        for host in self.hosts.values():
            host.start()

    def count_event(self) -> None:
        self.events += 1
        require(self.events < EVENTS_MAX, f"a storm: {EVENTS_MAX} events")

    def any_host(self) -> Host:
        return self.random.choice(list(self.hosts.values()))

    def leader(self) -> Host | None:
        """The leader of the highest term, if there is one."""
        leaders = [host for host in self.hosts.values() if host.leads]
        return max(leaders, key=lambda host: host.raft.term, default=None)

    def fail(self, what: str) -> None:
        raise Violation(what)

    def trace(self, host: Host, event: Event, actions: list[Action]) -> None:
        if self._trace:
            raft = host.raft
            head = f"{self.now:8.4f} {host.node} {raft.role} t{raft.term} c{raft.commit} <- {event}"
            sys.stdout.write("\n".join([head, *(f"{'':14}-> {action}" for action in actions)]) + "\n")


def storm(seed: int, *, host_class: type[Host] = Host, seconds: float = 8.0, trace: bool = False) -> World:
    """Everything at once, then calm: invariants all the way, liveness and linearizability at the end."""
    size = Random(seed).choice((3, 3, 5))
    world = World(
        seed, voters=size, spares=Random(seed).choice((0, 0, 2)), host_class=host_class, trace=trace
    )
    nemesis = Nemesis(world)
    world.clients = [Client(world, f"c{number}") for number in range(5)]
    world.run(seconds)
    nemesis.active = False
    calm(world)
    check_history(world)
    return world


def calm(world: World) -> None:
    """All is repaired: within seconds one node leads, keeps leading, and everybody catches up."""
    world.network.heal()
    for host in world.hosts.values():
        host.disk.failing, host.disk_seconds = "", (0.0002, 0.004)
        host.paused_until = 0.0
        host.start()
    begun, acknowledged = world.now, world.acknowledged
    live = world.run(begun + 20, lambda: world.acknowledged >= acknowledged + 10)
    require(live, "liveness: no ten writes within 20 s of calm")
    world.run(world.now + 3)
    elections = world.oracle.elections
    world.run(world.now + 3)
    require(world.oracle.elections == elections, "liveness: the leader changes although nothing is wrong")
    world.clients_stopped = True
    world.run(world.now + 3)
    converged(world)


def converged(world: World) -> None:
    """Every living member has applied the same."""
    leader = world.leader()
    require(leader is not None, "liveness: nobody leads")
    assert leader is not None
    for node in leader.raft.membership.everyone:
        host = world.hosts[node]
        if host.up:
            what = f"liveness: {node} is at {host.raft.applied}, the leader at {leader.raft.applied}"
            require(host.raft.applied == leader.raft.applied, what)
            require(host.state == leader.state, f"{node} made another state of the same commands")


def check_history(world: World) -> None:
    """What clients were told has an explanation, and what they were promised is there."""
    unanswered = [one for client in world.clients if (one := client.unanswered()) is not None]
    wrong = explain(world.history + unanswered)
    require(wrong is None, wrong or "")


def play(seed: int, run: Callable[..., World] = storm, **options: Any) -> World:
    """Run a seed; a failure says how to see it again."""
    try:
        return run(seed, **options)
    except AssertionError as error:
        name = getattr(options.get("host_class"), "mutant", None)
        mutant = f" --mutant {name}" if name else ""
        replay = f"python -m tests.simulation --seed {seed}{mutant} --trace"
        raise Violation(f"seed {seed}: {error}\nreplay: {replay}") from error


def seeds(count: int) -> range:
    """Which seeds to run; SLLMD_SIMULATION_SEED moves the window for longer hunts."""
    first = int(os.environ.get("SLLMD_SIMULATION_SEED", "0"))
    return range(first, first + count)

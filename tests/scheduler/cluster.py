"""Small clusters to decide about: nodes and models in one line each."""

from __future__ import annotations

from typing import Any

from sllmd.core.ids import GenerationId, ModelName, NodeId, ReplicaId, RequestId
from sllmd.scheduler import reports
from sllmd.scheduler.decisions import Placement
from sllmd.scheduler.facts import Model, Request, Rules
from sllmd.scheduler.keeper import Keeper
from sllmd.scheduler.placement import place
from sllmd.scheduler.settings import SchedulerSettings

GB = 10**9
NOW = 100.0
RATES = {"dram": 20e9, "ssd": 5e9, "peer": 1.25e9, "remote": 0.5e9}


def model(name: str, gb: float = 10, *, devices: int = 1, rows: int = 1, **more: Any) -> Model:
    part = round(gb * GB / devices)
    rules = Rules(**more.pop("rules", {}))
    return Model(ModelName(name), (part,) * devices, (part,) * devices, rows, rules=rules, **more)


def replica(
    name: str, of: str, *devices: int, running: int = 0, state: str = "ready"
) -> reports.ReplicaFacts:
    generations = tuple(
        reports.GenerationFacts(GenerationId(f"{name}-g{row}"), 100, 50) for row in range(running)
    )
    return reports.ReplicaFacts(ReplicaId(name), ModelName(of), devices, state, generations)


def inventory(
    name: str,
    *replicas: reports.ReplicaFacts,
    devices: int = 1,
    gb: float = 24,
    dram: str = "",
    ssd: str = "",
    **more: Any,
) -> reports.Inventory:
    return reports.Inventory(
        NodeId(name),
        more.pop("sequence", 0),
        name,
        (round(gb * GB),) * devices,
        512 * GB,
        dram=tuple(map(ModelName, dram.split())),
        ssd=tuple(map(ModelName, ssd.split())),
        replicas=replicas,
        bytes_per_second=more.pop("bytes_per_second", RATES),
        **more,
    )


def keeper(models: list[Model], *nodes: reports.Inventory, now: float = NOW - 50, **settings: Any) -> Keeper:
    """As of fifty seconds ago, so that residencies have passed."""
    made = Keeper(SchedulerSettings(**settings))
    for each in models:
        made.put_model(each)
    for node in nodes:
        made.take(node, now)
    return made


def request(of: str, **more: Any) -> Request:
    return Request(RequestId("q"), ModelName(of), NOW, **more)


def decide(made: Keeper, of: str, now: float = NOW, ahead: int = 0, **more: Any) -> Placement:
    return place(made.view, request(of, **more), now, ahead=ahead)


def told(made: Keeper, node: str, *changes: reports.Change, now: float = NOW) -> bool:
    sequence = made.view.nodes[NodeId(node)].sequence + 1
    return made.apply(reports.Report(NodeId(node), sequence, changes), now)

"""How long decisions take.

* Decisions on a view of busy nodes with ten thousand models, nearly every device taken, most of them busy, so
  that many decisions search for victims. The clock is the thread's own CPU time: on a machine that others
  use, wall time would measure them. The collector is frozen over the view, as a leader does it.
* View updates: what a node reports of eight devices, one report at a time.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Goal, Report
from sllmd.core.ids import GenerationId, ModelName, NodeId, ReplicaId, RequestId
from sllmd.scheduler import reports
from sllmd.scheduler.facts import Model, Request
from sllmd.scheduler.keeper import Keeper
from sllmd.scheduler.learning import quantile
from sllmd.scheduler.placement import place
from sllmd.simulator.hardware import GB

GOALS = (
    Goal("scheduler.decide_ms_64", "ms", "<=", 2),
    Goal("scheduler.decide_ms_1000", "ms", "<=", 10),
    Goal("scheduler.update_us", "us", "<=", 50),
    Goal("scheduler.growth", "ratio", "<=", 1.2),
)
MODELS = 10_000
DECISIONS = 500


def busy_cluster(nodes: int, seed: int) -> tuple[Keeper, list[ModelName]]:
    """Nodes of eight devices, all taken but where a model over two of them did not fit."""
    chance = random.Random(seed)
    keeper = Keeper()
    names = [ModelName(f"m{index}") for index in range(MODELS)]
    for index, name in enumerate(names):
        size = (13, 26, 60)[index % 3] * GB
        parts = (size,) if size < 48 * GB else (size // 2, size // 2)
        # With its cache, no two share a device.
        keeper.put_model(Model(name, parts, tuple(max(part + 8 * GB, 30 * GB) for part in parts), rows=4))
    for index in range(nodes):
        keeper.take(_inventory(keeper, index, names, chance), 0.0)
    return keeper, names


def _inventory(
    keeper: Keeper, index: int, names: Sequence[ModelName], chance: random.Random
) -> reports.Inventory:
    replicas: list[reports.ReplicaFacts] = []
    device = 0
    while device < 8:
        name = chance.choice(names)
        wide = keeper.view.models[name].model.devices
        if device + wide <= 8:
            generations = tuple(
                reports.GenerationFacts(
                    GenerationId(f"g{index}-{device}-{row}"),
                    chance.randrange(50, 2000),
                    chance.randrange(500),
                )
                for row in range(chance.randrange(4))
            )
            devices = tuple(range(device, device + wide))
            replica = ReplicaId(f"r{index}-{device}")
            replicas.append(reports.ReplicaFacts(replica, name, devices, "ready", generations))
            device += wide
        else:
            device += 1
    return reports.Inventory(
        NodeId(f"n{index}"),
        0,
        f"node{index}",
        (48 * GB,) * 8,
        512 * GB,
        dram=tuple(chance.sample(names, 20)),
        ssd=tuple(chance.sample(names, 100)),
        replicas=tuple(replicas),
        bytes_per_second={"dram": 20e9, "ssd": 5e9, "peer": 1.25e9, "remote": 1.25e9},
    )


def _timed(action: Callable[[], object]) -> float:
    begin = time.thread_time()
    action()
    return time.thread_time() - begin


def decision_seconds(nodes: int, seed: int) -> list[float]:
    """CPU time of each of many decisions, ascending."""
    keeper, names = busy_cluster(nodes, seed)
    chance = random.Random(seed)
    gc.collect()
    gc.freeze()
    try:
        asked = [Request(RequestId(f"q{n}"), chance.choice(names), 10.0) for n in range(DECISIONS)]
        return sorted(_timed(lambda r=request: place(keeper.view, r, 10.0)) for request in asked)
    finally:
        gc.unfreeze()


def update_seconds(seed: int) -> list[float]:
    """CPU time of each of many reports to a view of 1,000 nodes, ascending: tokens of every generation of a
    node, and a generation that begins or ends."""
    keeper, _ = busy_cluster(1000, seed)
    found = []
    for node in list(keeper.view.nodes.values()):
        generations = [(r, g) for r in node.replicas.values() for g in r.generations]
        tokens = [reports.GenerationTokens(r.replica, g, 600) for r, g in generations]
        ends = [reports.GenerationEnded(r.replica, g, 610) for r, g in generations[:1]]
        for sequence, changes in ((1, tokens), (2, ends)):
            report = reports.Report(node.node, sequence, tuple(changes))
            found.append(_timed(lambda r=report: keeper.apply(r, 11.0)))
    return sorted(found)


def measure(report: Report, options: Options) -> None:
    """All of it, ``rounds`` times."""
    rounds = options.rounds
    p99: dict[int, list[float]] = {64: [], 125: [], 1000: []}
    updates = []
    for seed in range(rounds):
        log(f"scheduler: decisions, round {seed + 1}")
        for nodes, found in p99.items():
            found.append(quantile(decision_seconds(nodes, seed), 0.99) * 1e3)
        updates.append(quantile(update_seconds(seed), 0.99) * 1e6)
    for nodes, found in p99.items():
        report.row(f"decision p99, {nodes} x 8, {MODELS} models", found, "ms")
    report.row("view update p99, 1000 x 8", updates, "us")
    growth = [large / small / 8 for large, small in zip(p99[1000], p99[125], strict=True)]
    report.value("scheduler.decide_ms_64", p99[64], rounds)
    report.value("scheduler.decide_ms_1000", p99[1000], rounds)
    report.value("scheduler.update_us", updates, rounds)
    report.value("scheduler.growth", growth, rounds)

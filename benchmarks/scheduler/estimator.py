"""How far the leader's estimates are from what loads really take, tier by tier.

Two daemons: one leads and has what the other fetches from it, and the placement rules send every model to
the other. Each load is a cold start through the API; what was expected is the decision's total, what it took
is what ``sllmd explain`` shows: from the request's arrival until it has a replica, agreement and orders
included.
Sizes are drawn from a range. After ten loads of a tier errors count. Then the caps of the loading node are
halved, by a restart with other settings, and of the remote source by its server, which tells nobody.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Goal, Report
from benchmarks.scheduler.origin import Origin, origin
from benchmarks.scheduler.stage import CAPS, Cold, Shelf, caps, planned, shelf, stage, start_cold, unload
from sllmd.core.units import MIB
from sllmd.scheduler.learning import quantile
from tests.storm.fleet import Daemon, Fleet

GOALS = (
    Goal("scheduler.error_median", "ratio", "<=", 0.05),
    Goal("scheduler.error_p95", "ratio", "<=", 0.15),
    Goal("scheduler.relearn_loads", "loads", "<=", 3),
)
P95 = 0.15
LEARNING_LOADS = 10
LOADS_PER_ROUND = 4
CHANGED_LOADS = 6
"""After the caps have changed."""
SIZES = (8 * MIB, 24 * MIB)
TIERS = ("dram", "ssd", "peer", "remote")
HERE = {"role": "loader"}
"""The label of the node that loads."""


def measure(report: Report, options: Options) -> None:
    """All tiers on one cluster."""
    asyncio.run(_measure(report, options.rounds))


async def _measure(report: Report, rounds: int) -> None:
    counted = rounds * LOADS_PER_ROUND
    total = LEARNING_LOADS + counted + CHANGED_LOADS
    async with shelf() as made, origin(4 * CAPS["remote"]) as server:
        names = {tier: [f"{tier}-{number}" for number in range(total)] for tier in ("peer", "remote")}
        names["ssd"] = [f"ssd-{number}" for number in range(8)]
        await asyncio.to_thread(_stock, made, server, names)
        holders = dict.fromkeys(names["ssd"], (1,))
        holders |= {name: (0,) for tier in ("peer", "remote") for name in names[tier]}
        settings = {f"node.labels.{name}": value for name, value in HERE.items()}
        async with stage(2, made, holders, {"loader.dram_budget": "256MiB"}, of_each={1: settings}) as group:
            for name in holders:
                await _send_here(group[0], name)
            found = await _Loads(group, names).before_and_after(total - CHANGED_LOADS, server)
    _tell(report, rounds, found)


def _stock(made: Shelf, server: Origin, names: dict[str, list[str]]) -> None:
    chance = random.Random("sizes")
    for tier, own in names.items():
        for name in own:
            source = made.make(name, chance.randrange(*SIZES))
            made.keep(name, str(source) if tier != "remote" else server.publish(name, source))


async def _send_here(daemon: Daemon, model: str) -> None:
    """Only the node with the label may have it."""
    _, spec = await daemon.ask("GET", f"/sllmd/v1/deployments/{model}")
    body = {key: spec[key] for key in ("digest", "source", "max_replicas")} | {"placement": HERE}
    status, said = await daemon.ask("PUT", f"/sllmd/v1/deployments/{model}", body)
    if status != 200:
        raise RuntimeError(f"{model} not placed: {status} {said}")


@dataclass
class _Loads:
    """Loads by tier, in turn."""

    group: Fleet
    names: dict[str, list[str]]

    async def before_and_after(self, before: int, server: Origin) -> dict[str, list[Cold]]:
        found: dict[str, list[Cold]] = {tier: [] for tier in TIERS}
        for number in range(before):
            await self._round(number, found)
        here = self.group[1]
        await here.end()
        halved = caps({tier: CAPS[tier] // 2 for tier in TIERS if tier != "remote"})
        here.start(*(part for key, value in halved.items() for part in ("--set", f"{key}={value}")))
        await here.serves()
        await self.group.settled(1)
        server.bytes_per_second = CAPS["remote"] // 2
        for number in range(before, before + CHANGED_LOADS):
            await self._round(number, found)
        return found

    async def _round(self, number: int, found: dict[str, list[Cold]]) -> None:
        local = self.names["ssd"][number % len(self.names["ssd"])]
        for tier in TIERS[::-1]:
            model = local if tier in ("ssd", "dram") else self.names[tier][number]
            found[tier].append(await self._load(model, tier))
            await unload(self.group[1], model, keep_dram=tier == "ssd")

    async def _load(self, model: str, tier: str) -> Cold:
        await planned(self.group[0], model, way="load", source=tier)
        cold = await start_cold(self.group[0], model)
        if cold.tier != tier:
            raise RuntimeError(f"{model} came from {cold.tier}, not from {tier}")
        return cold


def _tell(report: Report, rounds: int, found: dict[str, list[Cold]]) -> None:
    medians, p95s, relearned = [], [], []
    for tier, loads in found.items():
        errors = [load.error for load in loads]
        counted = errors[LEARNING_LOADS:-CHANGED_LOADS]
        medians.append(statistics.median(counted))
        p95s.append(quantile(sorted(counted), 0.95))
        relearned.append(_relearned(errors[-CHANGED_LOADS:]))
        report.row(f"estimate's error, {tier}", counted, "ratio", p95=p95s[-1])
        report.row(f"estimate's error, {tier}, the first ten", errors[:LEARNING_LOADS], "ratio")
        report.row(f"loads until {tier} at half its pace is expected", [relearned[-1]], "loads")
        seconds = [load.actual_seconds for load in loads[LEARNING_LOADS:-CHANGED_LOADS]]
        report.row(f"cold start from {tier}", seconds, "s")
        log(f"{tier}: " + " ".join(f"{error:.3f}" for error in errors))
    report.value("scheduler.error_median", [max(medians)] * rounds, rounds)
    report.value("scheduler.error_p95", [max(p95s)] * rounds, rounds)
    report.value("scheduler.relearn_loads", [max(relearned)] * rounds, rounds)


def _relearned(errors: Sequence[float]) -> int:
    """Loads until errors are within the bound and stay there."""
    return max((number for number, error in enumerate(errors, 1) if error > P95), default=0)

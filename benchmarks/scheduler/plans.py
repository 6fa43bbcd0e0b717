"""Fifty cold starts: is what ``sllmd plan`` says before what then happens?

Four daemons, each with a part of the models on SSD; whatever is loaded stays there, so that over time models
are in DRAM here, on SSD there, and elsewhere only on peers. Before each request its plan is asked for; then
it is asked through any node.
"""

from __future__ import annotations

import asyncio
import random
import statistics

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Goal, Report
from benchmarks.scheduler.stage import Shelf, planned, shelf, stage, start_cold, unload
from sllmd.core.units import MIB
from sllmd.scheduler.learning import quantile
from tests.storm.fleet import Daemon, Fleet

GOALS = (
    Goal("scheduler.plan_chosen", "share", ">=", 1),
    Goal("scheduler.plan_error_median", "ratio", "<=", 0.05),
    Goal("scheduler.plan_error_p95", "ratio", "<=", 0.15),
)
NODES, MODELS, LEARNING, STARTS = 4, 12, 24, 50
DRAM = "64MiB"
"""Of each node: some of the models."""


def measure(report: Report, options: Options) -> None:  # noqa: ARG001 - fifty are fifty
    """All starts, one after the other."""
    asyncio.run(_measure(report))


async def _measure(report: Report) -> None:
    chance = random.Random("plans")
    names = [f"m{number}" for number in range(MODELS)]
    async with shelf() as made:
        await asyncio.to_thread(_stock, made, names, chance)
        holders = {name: chance.sample(range(NODES), 2) for name in names}
        async with stage(NODES, made, holders, {"loader.dram_budget": DRAM}) as group:
            for _ in range(LEARNING):
                await _start(group, chance.choice(names), chance)
            found = [await _start(group, chance.choice(names), chance) for _ in range(STARTS)]
    chosen = [float(same) for same, _, _ in found]
    errors = sorted(error for _, error, _ in found)
    tiers = [tier for _, _, tier in found]
    for tier in sorted(set(tiers)):
        report.row(f"plan's total against explain's, {tier}", [e for _, e, t in found if t == tier], "ratio")
    report.value("scheduler.plan_chosen", [statistics.fmean(chosen)], 1)
    report.value("scheduler.plan_error_median", [statistics.median(errors)], 1)
    report.value("scheduler.plan_error_p95", [quantile(errors, 0.95)], 1)
    report.row("cold starts after a plan", [len(found)], "starts")


def _stock(made: Shelf, names: list[str], chance: random.Random) -> None:
    for name in names:
        made.keep(name, str(made.make(name, chance.randrange(8 * MIB, 24 * MIB))))


async def _start(group: Fleet, model: str, chance: random.Random) -> tuple[bool, float, str]:
    """Whether the plan's first line was the node chosen, the error of its total, and the tier."""
    plan = await planned(group[0], model, way="load")
    cold = await start_cold(chance.choice(group.daemons), model)
    same = plan["ways"][0]["node"] == cold.node
    if not same:
        log(f"{model}: planned {plan['ways'][0]}, went to {cold.node}: {cold.plan['ways']}")
    error = abs(plan["total_seconds"] - cold.actual_seconds) / cold.actual_seconds
    await unload(await _named(group, cold.node), model, keep_dram=chance.random() < 0.7)
    return same, error, cold.tier


async def _named(group: Fleet, node: str) -> Daemon:
    """The daemon of that id."""
    _, said = await group[0].ask("GET", "/sllmd/v1/members")
    [name] = [member["name"] for member in said["members"] if member["id"] == node]
    return next(daemon for daemon in group.daemons if daemon.name == name)

"""Bursts on real daemons: failed requests, and cold starts against what the simulator predicts.

First every model is started once, which calibrates the simulator: what a start takes beyond its bytes. Then
the trace is played, and simulated on virtual nodes with the same caps, the same engine's pace and the same
rules (policy ``waiting``). Cold are requests that a load was begun for or that waited for one; compared is
their p99 from arrival to a replica.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Goal, Report
from benchmarks.scheduler.load import (
    DEVICES,
    DRAM_BYTES,
    KEEP_ALIVE_SECONDS,
    MODEL_BYTES,
    NAMES,
    NODES,
    ROWS,
    Player,
    explained,
    loaded_stage,
    trace,
)
from benchmarks.scheduler.stage import (
    CAPS,
    PREFILL_TOKEN_SECONDS,
    SETTINGS,
    TOKEN_SECONDS,
    start_cold,
    startup_seconds,
    unload,
)
from sllmd.core.ids import ModelName
from sllmd.scheduler.facts import Model, Rules
from sllmd.scheduler.learning import quantile
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.simulator.hardware import Hardware, Kind, Pace
from sllmd.simulator.results import Result
from sllmd.simulator.simulation import simulate
from sllmd.simulator.traces import Arrival
from tests.storm.fleet import Fleet

GOALS = (
    Goal("scheduler.real_failed", "requests", "<=", 0),
    Goal("scheduler.predict_gap", "ratio", "<=", 0.25),
)
MINUTES = 5.0
"""What the targets speak of; a shorter run leaves the first of them missed."""


def measure(report: Report, options: Options) -> None:
    """One trace, once."""
    asyncio.run(_measure(report, options.minutes))


async def _measure(report: Report, minutes: float) -> None:
    arrivals = trace(minutes * 60, seed=1)
    async with loaded_stage() as group:
        start_seconds = await _calibrate(group)
        player = Player(group)
        await player.play(arrivals, lambda: group.daemons)
        told = await explained(group.daemons)
    failures = Counter(one.failure for one in player.played if one.failure)
    for failure, count in failures.items():
        log(f"bursts: {count} x {failure}")
    cold = [startup_seconds(each) for name, each in told.items() if name.startswith("load") and each["cold"]]
    foreseen = simulate_same(arrivals, start_seconds)
    _tell(report, cold, foreseen, start_seconds)
    report.row("requests of the bursts", [len(player.played)], "requests")
    if minutes >= MINUTES:
        report.value("scheduler.real_failed", [failures.total()], 1)
    else:
        report.row(f"failed requests in {minutes:g} minutes", [failures.total()], "requests")


async def _calibrate(group: Fleet) -> float:
    """What a start takes beyond its bytes: median over one cold start of each model."""
    found = []
    for name in NAMES:
        cold = await start_cold(group[0], name)
        found.append(cold.actual_seconds - MODEL_BYTES / CAPS[cold.tier])
        for daemon in group.daemons:
            await unload(daemon, name, keep_dram=False)
    return statistics.median(found)


def simulate_same(arrivals: list[Arrival], start_seconds: float) -> Result:
    """The same trace on virtual daemons."""
    hardware = Hardware(
        nodes=NODES,
        devices=DEVICES,
        device_bytes=MODEL_BYTES,
        dram_bytes=DRAM_BYTES,
        to_device=CAPS["dram"],
        from_ssd=CAPS["ssd"],
        network=CAPS["peer"],
        start_seconds=start_seconds,
        noise=0.0,
    )
    pace = Pace(PREFILL_TOKEN_SECONDS, 0.0, TOKEN_SECONDS)
    kind = Kind("m", (MODEL_BYTES,), (MODEL_BYTES,), pace, ROWS)
    rules = Rules(max_replicas=16, keep_alive_seconds=KEEP_ALIVE_SECONDS)
    models = [_model(name, rules) for name in NAMES]
    settings = SchedulerSettings(residency_min=SETTINGS["scheduler.residency_min"])
    return simulate(hardware, [(kind, model) for model in models], arrivals, "waiting", 1, settings)


def _model(name: ModelName, rules: Rules) -> Model:
    return Model(name, (MODEL_BYTES,), (MODEL_BYTES,), ROWS, remote=False, rules=rules)


def _tell(report: Report, cold: list[float], foreseen: Result, start_seconds: float) -> None:
    real, virtual = sorted(cold), sorted(foreseen.cold_startup_seconds)
    report.row("start beyond its bytes", [start_seconds], "s")
    for share in (0.5, 0.9, 0.99):
        for what, seconds in (("real", real), ("simulated", virtual)):
            found = [quantile(seconds, share)] if seconds else []
            report.row(f"cold start p{share * 100:g}, {what}", found, "s", starts=len(seconds))
    report.row("cold requests, real", [len(real)], "requests")
    report.row("cold requests, simulated", [len(virtual)], "requests")
    if real and virtual:
        gap = abs(quantile(real, 0.99) / quantile(virtual, 0.99) - 1)
        report.value("scheduler.predict_gap", [gap], 1)

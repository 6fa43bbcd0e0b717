"""Draining a node under 32 streams: what breaks, and how long it takes beyond recomputing."""

from __future__ import annotations

import asyncio
import json

import aiohttp

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.migration.stage import Server, busier, listen, plans, prefill_rate, stage, tokens_come
from benchmarks.report import Goal, Report

GOALS = (
    Goal("migration.drain_broken", "streams", "<=", 0),
    Goal("migration.drain_s", "s", "<=", 5),
)
STREAMS, TOKENS = 32, 1900
"""All of them fit into the cache of the one that takes them over."""


def measure(report: Report, options: Options) -> None:
    """Each time the node that runs more."""
    broken = 0
    seconds: list[float] = []
    pauses: list[float] = []
    with stage() as (a, b, router):
        rate = asyncio.run(prefill_rate(router))
        for _ in range(options.rounds):
            victim, lost, took_seconds, paused = asyncio.run(_drain(router, (a, b), rate))
            broken += lost
            seconds.append(took_seconds)
            pauses += paused
            victim.live.ask(f"/sllmd/v1/nodes/{victim.name}/undrain", {})
            victim.load()
    report.row("drain less recompute", seconds, "s")
    report.row("pause of a drained stream", pauses, "ms")
    if len(seconds) >= options.rounds:
        report.value("migration.drain_broken", [broken], 1)
        report.value("migration.drain_s", seconds, options.rounds)


async def _drain(
    router: Server, victims: tuple[Server, Server], rate: float
) -> tuple[Server, int, float, list[float]]:
    """Drain the one that runs more; how many streams broke, the seconds beyond recomputing, the pauses."""
    heard = plans(STREAMS)
    tasks = [
        asyncio.create_task(listen(router.live.url, each, tokens=TOKENS, timed_only=True)) for each in heard
    ]
    await tokens_come(heard, 100)
    victim = await busier(victims)
    if not await asyncio.to_thread(lambda: victim.running):
        raise RuntimeError("the streams were made before their clients had read 100 tokens: nothing to drain")
    async with aiohttp.ClientSession() as session:
        path = f"/sllmd/v1/nodes/{victim.name}/drain"
        async with session.post(victim.live.url + path, json={"deadline_seconds": 120}) as response:
            raw = await response.text()
    steps = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    if not steps or steps[-1].get("status") != "drained":
        raise RuntimeError(f"{victim.name} did not drain: {steps[-1:]}")
    await asyncio.gather(*tasks)
    failed = [each.error for each in heard if each.error is not None]
    for each in failed:
        log(f"drain: {each}")
    paused = [step["pause_ms"] for step in steps if step.get("pause_ms") is not None]
    if not steps[-1]["moved"]:
        why = sorted({f"{step['result']}: {step['reason']}" for step in steps if step.get("result")})
        raise RuntimeError(f"nothing moved from {victim.name}: {why or 'nothing ran there'}")
    known_tokens = steps[-1]["moved"] * (100 + len(heard[0].prompt))
    return victim, len(failed), max(0.0, steps[-1]["seconds"] - known_tokens / rate), paused

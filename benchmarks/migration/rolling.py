"""Every node of three is stopped and started again, one after the other, under continuous load.

Clients do what those behind a balancer do: where a node refuses the connection, or says that it stops, before
anything was answered, the next one is asked. Whatever breaks after that has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import aiohttp

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.migration.stage import MODEL, Server, stage
from benchmarks.report import Goal, Report

GOALS = (Goal("migration.rolling_failed", "requests", "<=", 0),)
CLIENTS, TOKENS = 6, 60


def measure(report: Report, options: Options) -> None:  # noqa: ARG001 - one restart of each node is the measure
    """One round over all nodes."""
    with stage() as (a, b, router):
        failures, done = asyncio.run(_roll([router, a, b]))
    for failure in failures:
        log(f"rolling: {failure}")
    report.row("requests during a rolling restart", [done], "requests", failed=len(failures))
    report.value("migration.rolling_failed", [len(failures)], 1)


async def _roll(servers: Sequence[Server]) -> tuple[list[str], int]:
    stop = asyncio.Event()
    failures: list[str] = []
    done = 0

    async def ask_on(number: int) -> None:
        nonlocal done
        turn = number
        while not stop.is_set():
            failure = await _ask(servers, turn)
            done += 1
            turn += 1
            if failure is not None:
                failures.append(failure)

    clients = [asyncio.create_task(ask_on(number)) for number in range(CLIENTS)]
    for server in servers:
        await asyncio.sleep(2)
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)
        if server.name != "router":
            await asyncio.to_thread(server.load)
    await asyncio.sleep(2)
    stop.set()
    await asyncio.gather(*clients)
    return failures, done


async def _ask(servers: Sequence[Server], turn: int) -> str | None:
    """Why it failed; None: it did not."""
    body = {"model": MODEL, "prompt": "hi", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    refused = ""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        for step in range(3 * len(servers)):
            server = servers[(turn + step) % len(servers)]
            if not server.live.url:  # on its way up
                await asyncio.sleep(0.2)
                continue
            with contextlib.suppress(aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError):
                try:
                    async with session.post(server.live.url + "/v1/completions", json=body) as response:
                        if response.status == 503:
                            refused = await response.text()
                            continue
                        text = await response.text()
                        if (
                            response.status == 200
                            and text.endswith("data: [DONE]\n\n")
                            and '"error"' not in text
                        ):
                            return None
                        return f"{server.name}: {response.status} {text[-200:]}"
                except aiohttp.ClientPayloadError as error:
                    return f"{server.name}: {error!r}"
            await asyncio.sleep(0.2)
    return f"nobody took it: {refused[-200:]}"

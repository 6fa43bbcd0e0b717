"""What it costs that a request's router and its replica are on different nodes.

Two daemons on loopback with TLS between them; one holds the model. The same requests go to that one (direct)
and to the other (relayed), in turn. Tokens per second and core: sixteen generations that step together cross
to this process, with neither engine nor HTTP, and are divided by the CPU time of the busier process.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import defaultdict

import aiohttp
import uvloop

from benchmarks.client import Target, stream, throughput
from benchmarks.cluster.fleets import MODEL, VOTERS, a_fleet
from benchmarks.cluster.identities import identities, saying
from benchmarks.cluster.options import Options
from benchmarks.cluster.relay_source import BATCH, SOURCE, cpu_seconds
from benchmarks.report import Goal, Report, ratios, rotated
from benchmarks.servers import resident_bytes
from sllmd.core.ids import Digest, GenerationId, ModelName, NodeId, RequestId
from sllmd.engine.protocol import GenerationState, Sampling
from sllmd.roles.relay import Relays, There
from sllmd.roles.work import Work
from sllmd.wire.rpc.connection import Connection, Local
from sllmd.wire.rpc.hello import Hello
from sllmd.wire.rpc.methods import Methods
from sllmd.wire.rpc.peers import Address, Peers
from sllmd.wire.rpc.settings import RpcSettings
from sllmd.wire.tls import Tls
from tests.storm.fleet import Daemon, Fleet

GOALS = (
    Goal("cluster.relay_ttft_ms", "ms", "<=", 3),
    Goal("cluster.relay_ratio", "ratio", ">=", 0.95),
    Goal("cluster.relay_tokens_s", "tokens/s", ">=", 20_000),
    Goal("cluster.relay_rss_mb_1000", "MB", "<=", 200),
)
ASKED = 60
"""Requests per way and round for the first token."""
NEW_TOKENS = 128
STEP_SECONDS = 0.01
"""Of the fake engine: sixteen streams make 1,600 tokens a second, several times what a CPU generates."""
STREAMS = 1000
SLOW_STEP_SECONDS = 5.0
CROSSING_TOKENS = 1000
"""Of each of the sixteen."""
DIRECT, RELAYED = "direct", "relayed"

Samples = dict[str, dict[int, float]]


def measure(report: Report, options: Options) -> None:
    """One after the other, each round by round; what is measured stays if the next one fails."""
    rounds = options.rounds
    samples: Samples = defaultdict(dict)
    asyncio.run(_daemons(rounds, samples))
    _rows(report, samples, {"first": "ms", "batches": "tokens/s"})
    direct, relayed = (samples[f"{way}: first token"] for way in (DIRECT, RELAYED))
    report.value("cluster.relay_ttft_ms", [relayed[index] - direct[index] for index in relayed], rounds)
    direct, relayed = (samples[f"{way}: batches of {BATCH}"] for way in (DIRECT, RELAYED))
    report.value("cluster.relay_ratio", ratios(relayed, direct), rounds)
    samples = defaultdict(dict)
    uvloop.run(_crossing(rounds, samples))
    _rows(report, samples, {"crossing": "tokens/s"})
    report.value("cluster.relay_tokens_s", list(samples["crossing, per core"].values()), rounds)
    samples = defaultdict(dict)
    asyncio.run(_many(rounds, samples))
    _rows(report, samples, {"resident": "MB"})
    report.value("cluster.relay_rss_mb_1000", list(samples["resident, both added"].values()), rounds)


def _rows(report: Report, samples: Samples, units: dict[str, str]) -> None:
    for name, found in samples.items():
        unit = next(unit for word, unit in units.items() if word in name)
        report.row(f"relay: {name}", list(found.values()), unit)


async def _daemons(rounds: int, samples: Samples) -> None:
    async with a_fleet(2, 1, holders=[0], token_seconds=STEP_SECONDS) as group:
        await _ready(group)
        ways = {DIRECT: group[0], RELAYED: group[1]}
        for daemon in ways.values():
            await throughput(daemon.http, _target(), _prompts("warm-up"), 8)
        for index in range(rounds):
            await _first_tokens(ways, index, samples)
            for way in rotated(list(ways), index):
                found = await throughput(ways[way].http, _target(), _prompts(f"{index}"), NEW_TOKENS)
                samples[f"{way}: batches of {BATCH}"][index] = found


async def _first_tokens(ways: dict[str, Daemon], index: int, samples: Samples) -> None:
    """One direct, one relayed, in turn."""
    found: dict[str, list[float]] = defaultdict(list)
    for number in range(ASKED):
        for way in rotated(list(ways), number):
            answer = await stream(ways[way].http, _target(), f"{index}-{number}", 2)
            found[way].append(answer.first_token_seconds * 1000)
    for way, times in found.items():
        samples[f"{way}: first token"][index] = statistics.median(times)


def _target() -> Target:
    return Target("http://localhost", MODEL, extra={"ignore_eos": True})


def _prompts(seed: str) -> list[str]:
    return [f"{seed}-{row}" for row in range(BATCH)]


async def _ready(group: Fleet) -> None:
    """The other daemon knows of the model, and relays it."""
    status, _ = await group[0].ask(
        "POST", f"/sllmd/v1/models/{MODEL}/load", {"tier": "device", "stream": False}
    )
    assert status == 200
    for daemon in group.daemons:
        await daemon.until(
            "/v1/models", lambda body: any(one["id"] == MODEL for one in body["data"]), f"{MODEL} is known"
        )


# --- across, without engine and HTTP ---


async def _crossing(rounds: int, samples: Samples) -> None:
    with identities(["source", "target"]) as (source, target), saying("relay_source", source) as said:
        address = Address("127.0.0.1", int(said))
        peers = Peers(Local(lambda: Hello("bench", NodeId("target")), Methods(), RpcSettings(), Tls(target)))
        try:
            await _cross(await peers.connection(SOURCE, address), 200)
            for index in range(rounds):
                per_core = await _cross(await peers.connection(SOURCE, address), CROSSING_TOKENS)
                samples["crossing, per core"][index] = per_core
        finally:
            await peers.close()


async def _cross(connection: Connection, tokens: int) -> float:
    """Tokens per second of the busier process's CPU time."""

    async def connect(_node: NodeId) -> Connection:
        return connection

    there = There(SOURCE, Relays(connect, start_timeout_seconds=10))
    spent = await connection.call("spent", None), cpu_seconds()
    counts = await asyncio.gather(*(_read(there, number, tokens) for number in range(BATCH)))
    busier = max(await connection.call("spent", None) - spent[0], cpu_seconds() - spent[1])
    assert counts == [tokens] * BATCH
    return float(sum(counts) / busier)


async def _read(there: There, number: int, tokens: int) -> int:
    state = GenerationState(GenerationId(f"g{number}"), [1, 2, 3], Sampling(seed=1, max_tokens=tokens))
    work = Work(RequestId(f"r{number}"), ModelName("m"), Digest("d"), state)
    count = 0
    async for happening in there.run(work):
        count += hasattr(happening, "token_id")
    return count


# --- a thousand at once ---


async def _many(rounds: int, samples: Samples) -> None:
    """What both daemons grow by while so many relayed streams are open; fresh daemons in each round."""
    settings = {**VOTERS, "serving.queue_max_per_model": STREAMS, "engine.batch_max": STREAMS}
    for index in range(rounds):
        async with a_fleet(2, 1, holders=[0], settings=settings, token_seconds=SLOW_STEP_SECONDS) as group:
            await _ready(group)
            await stream(group[1].http, _target(), "warm-up", 1)
            before = [resident_bytes(daemon.pid) for daemon in group.daemons]
            streams = [asyncio.create_task(_hold(group[1], number)) for number in range(STREAMS)]
            await group[0].until(
                "/sllmd/v1/status", lambda body: body["requests_running"] >= STREAMS, "all streams run"
            )
            grown = [resident_bytes(d.pid) - was for d, was in zip(group.daemons, before, strict=True)]
            for one in streams:
                one.cancel()
            await asyncio.gather(*streams, return_exceptions=True)
        samples["resident, the replica's node"][index] = grown[0] / 1e6
        samples["resident, the router's node"][index] = grown[1] / 1e6
        samples["resident, both added"][index] = sum(grown) / 1e6


async def _hold(daemon: Daemon, number: int) -> None:
    body = {"model": MODEL, "prompt": f"{number}", "max_tokens": 1000, "stream": True, "ignore_eos": True}
    timeout = aiohttp.ClientTimeout(total=None)
    async with daemon.http.post("/v1/completions", json=body, timeout=timeout) as answer:
        assert answer.status == 200, await answer.text()
        async for _ in answer.content:
            pass

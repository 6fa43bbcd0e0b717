"""``scripts/bench coldstart``: from a request to its first streamed token, the model not being there."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import aiohttp

from benchmarks.anchors import make_cold, measure
from benchmarks.client import BadAnswer, Stream, Target, session, stream
from benchmarks.environments import log
from benchmarks.models import model_directory
from benchmarks.node import Node
from benchmarks.prompts import prompt, vocabulary_size
from benchmarks.report import Goal, Report, ratios, rotated
from benchmarks.servers import Server, post, ray_replicas, start_ray, start_transformers, transformers_target
from benchmarks.store import imported
from benchmarks.tier_load import data_files

GOALS = (
    Goal("coldstart.dram_ms", "ms", "<=", 250),
    Goal("coldstart.attach_ms", "ms", "<=", 60),
    Goal("coldstart.ssd_over_floor", "ratio", "<=", 1.3),
    Goal("coldstart.vs_ray", "ratio", ">=", 12),
    Goal("coldstart.vs_transformers_serve", "ratio", ">=", 1.2),
    Goal("coldstart.switch_vs_ray", "ratio", ">=", 30),
    Goal("coldstart.switch_vs_ray_mux", "ratio", ">=", 1.2),
)
DEMO, SECOND, BIG = "demo", "random-demo", "random-1g"
PROMPT_TOKENS = 16
NEW_TOKENS = 8
SSD_ALLOWANCE_SECONDS = 0.1
"""What ssd_over_floor grants on top of its ratio."""
SWITCHES = 4
SCALE_DOWN_SECONDS = 120.0

Samples = dict[str, dict[int, float]]
"""What was measured -> round -> seconds."""
Measure = Callable[[int], Awaitable[None]]


def run(rounds: int) -> Report:
    """All servers, ``rounds`` times."""
    report = Report(GOALS)
    samples = asyncio.run(_measure(rounds))
    _values(report, samples, rounds)
    for name, found in samples.items():
        report.row(name, [seconds * 1000 for seconds in found.values()], "ms")
    return report


async def _measure(rounds: int) -> Samples:
    for name in (DEMO, SECOND, BIG):
        imported(name)
    samples: Samples = defaultdict(dict)
    with ExitStack() as servers:
        node = servers.enter_context(Node("coldstart", replicas_max=1))
        node.wait_url("/readyz")
        peer = servers.enter_context(start_transformers("transformers-serve", continuous_batching=False))
        async with session() as http:
            ours = _Ours(http, node, samples)
            theirs = _TransformersServe(http, peer, samples)
            ray = _Ray(http, samples)
            await _tried("transformers serve", theirs.first_load)
            parts: dict[str, Measure] = {
                "sllmd": ours.round,
                "transformers serve": theirs.round,
                "ray": ray.round,
            }
            for index in range(rounds):
                for name in rotated(list(parts), index):
                    log(f"coldstart round {index + 1}: {name}")
                    await _tried(name, lambda name=name, index=index: parts[name](index))
    return samples


async def _tried(name: str, measure_one: Callable[[], Awaitable[None]]) -> None:
    """A server that fails is a miss, said aloud; the others are still measured."""
    try:
        await measure_one()
    except (BadAnswer, RuntimeError, OSError, TimeoutError, aiohttp.ClientError) as error:
        log(f"{name} failed: {error!r}")


async def _first_token(http: aiohttp.ClientSession, target: Target, seed: str) -> Stream:
    return await stream(http, target, prompt(PROMPT_TOKENS, seed), NEW_TOKENS)


class _Ours:
    """sllmd with one slot."""

    def __init__(self, http: aiohttp.ClientSession, node: Node, samples: Samples) -> None:
        self.http = http
        self.node = node
        self.samples = samples

    async def round(self, index: int) -> None:
        """Every kind of cold start once."""
        await self._clear()
        await self._from_ssd(index)
        await self._from_dram(index, DEMO, "sllmd: SmolLM2 from DRAM")
        await self._clear()
        big = await self._from_dram(index, BIG, "sllmd: 1.1 GB from DRAM")
        stages = await self.node.stages_ms(self.http, big.request_id)
        self.samples["sllmd: 1.1 GB attach"][index] = stages["attach"] / 1000
        await self._clear()
        await self._switch(index)

    async def _clear(self) -> None:
        for model in (DEMO, SECOND, BIG):
            await self.node.unload(self.http, model)

    async def _from_ssd(self, index: int) -> None:
        file = data_files(imported(DEMO))[0]
        await self.node.settled(self.http)
        anchor = measure(file)["seconds"]
        make_cold(file)
        cold = await _first_token(self.http, self.node.target(DEMO), f"ssd-{index}")
        await asyncio.sleep(1.0)  # the worker is warm when it has prepared its fast path
        await _first_token(self.http, self.node.target(DEMO), f"warm-up-{index}")
        warm = await _first_token(self.http, self.node.target(DEMO), f"warm-{index}")
        self.samples["anchor: SmolLM2's bytes"][index] = anchor
        self.samples["sllmd: SmolLM2 from SSD"][index] = cold.first_token_seconds
        self.samples["sllmd: first token of a warm worker"][index] = warm.first_token_seconds
        floor = anchor + warm.first_token_seconds
        self.samples["floor"][index] = floor

    async def _from_dram(self, index: int, model: str, what: str) -> Stream:
        await self.node.unload(self.http, model)
        await self.node.load(self.http, model, "dram")
        await self.node.settled(self.http)
        answer = await _first_token(self.http, self.node.target(model), f"{what}-{index}")
        self.samples[what][index] = answer.first_token_seconds
        return answer

    async def _switch(self, index: int) -> None:
        """Two models in DRAM take turns on the slot, one request behind the other."""
        await self.node.load(self.http, DEMO, "dram")
        await self.node.load(self.http, SECOND, "device")
        await self.node.settled(self.http)
        seconds = []
        for turn in range(SWITCHES):
            target = self.node.target((DEMO, SECOND)[turn % 2])
            answer = await _first_token(self.http, target, f"switch-{index}-{turn}")
            seconds.append(answer.first_token_seconds)
        self.samples["sllmd: switch"][index] = statistics.median(seconds)


class _TransformersServe:
    """A running ``transformers serve``, told to forget its models before each request."""

    def __init__(self, http: aiohttp.ClientSession, server: Server, samples: Samples) -> None:
        self.http = http
        self.server = server
        self.samples = samples
        self.model = model_directory(DEMO)
        self.target = transformers_target(server, self.model, NEW_TOKENS, vocabulary_size() - 1)
        self.alive = False

    async def first_load(self) -> None:
        """The slowest load, with first imports, is not held against it."""
        self.server.wait_url("/health")
        answer = await _first_token(self.http, self.target, "first")
        self.samples["transformers serve: first load"][0] = answer.first_token_seconds
        self._leave()
        self.alive = True

    async def round(self, index: int) -> None:
        """Once with the page cache dropped, once with it."""
        if not self.alive:
            raise RuntimeError("it did not start")
        self.server.resume()
        try:
            for what in ("cold", "warm"):
                post(f"{self.server.base_url}/reset")
                if what == "cold":
                    make_cold(self.model / "model.safetensors")
                answer = await _first_token(self.http, self.target, f"serve-{what}-{index}")
                self.samples[f"transformers serve: {what}"][index] = answer.first_token_seconds
        finally:
            self._leave()

    def _leave(self) -> None:
        """Unloaded, since pages that somebody maps cannot be dropped from the page cache; then paused."""
        post(f"{self.server.base_url}/reset")
        self.server.pause()


class _Ray:
    """Ray Serve, started anew each round: an idle Ray is not idle, and would disturb the others."""

    def __init__(self, http: aiohttp.ClientSession, samples: Samples) -> None:
        self.http = http
        self.samples = samples

    async def round(self, index: int) -> None:
        """From zero cold and warm, two applications on one slot, two models in one replica."""
        a, b = model_directory(DEMO), model_directory(SECOND)
        with start_ray("ray", a, b) as server:
            server.wait_line("ready")
            target = {name: Target(f"{server.base_url}/{name}", name) for name in ("a", "b")}
            for what in ("cold", "warm"):
                await _nobody_left()
                if what == "cold":
                    make_cold(a / "model.safetensors")
                answer = await _first_token(self.http, target["a"], f"ray-{what}-{index}")
                self.samples[f"ray: from zero, {what}"][index] = answer.first_token_seconds
            await self._turns("ray: switch", index, target, first="b")
            mux = {
                name: Target(f"{server.base_url}/mux", name, headers={"serve_multiplexed_model_id": name})
                for name in ("a", "b")
            }
            await _first_token(self.http, mux["a"], f"ray-mux-{index}")
            await self._turns("ray: switch, multiplexed", index, mux, first="b")
            await _nobody_left()

    async def _turns(self, what: str, index: int, targets: dict[str, Target], *, first: str) -> None:
        second = "a" if first == "b" else "b"
        seconds = []
        for turn in range(SWITCHES):
            target = targets[(first, second)[turn % 2]]
            answer = await _first_token(self.http, target, f"{what}-{index}-{turn}")
            seconds.append(answer.first_token_seconds)
        self.samples[what][index] = statistics.median(seconds)


async def _nobody_left() -> None:
    """Until Ray has scaled to zero."""
    deadline = time.monotonic() + SCALE_DOWN_SECONDS
    while ray_replicas():
        if time.monotonic() > deadline:
            raise RuntimeError("Ray did not scale to zero")
        await asyncio.sleep(0.1)


def _values(report: Report, samples: Samples, rounds: int) -> None:
    report.value("coldstart.dram_ms", _ms(samples["sllmd: 1.1 GB from DRAM"]), rounds)
    report.value("coldstart.attach_ms", _ms(samples["sllmd: 1.1 GB attach"]), rounds)
    ssd = samples["sllmd: SmolLM2 from SSD"]
    beyond = {index: seconds - SSD_ALLOWANCE_SECONDS for index, seconds in ssd.items()}
    report.value("coldstart.ssd_over_floor", ratios(beyond, samples["floor"]), rounds)
    dram = samples["sllmd: SmolLM2 from DRAM"]
    report.value(
        "coldstart.vs_ray",
        _worse(
            ratios(samples["ray: from zero, cold"], ssd),
            ratios(samples["ray: from zero, warm"], dram),
            rounds,
        ),
        1,
    )
    report.value(
        "coldstart.vs_transformers_serve",
        _worse(
            ratios(samples["transformers serve: cold"], ssd),
            ratios(samples["transformers serve: warm"], dram),
            rounds,
        ),
        1,
    )
    switch = samples["sllmd: switch"]
    report.value("coldstart.switch_vs_ray", ratios(samples["ray: switch"], switch), rounds)
    report.value("coldstart.switch_vs_ray_mux", ratios(samples["ray: switch, multiplexed"], switch), rounds)


def _ms(found: dict[int, float]) -> list[float]:
    return [seconds * 1000 for seconds in found.values()]


def _worse(cold: list[float], warm: list[float], rounds: int) -> list[float]:
    """The smaller median: bytes on SSD against bytes on SSD, bytes in memory against bytes in memory."""
    if min(len(cold), len(warm)) < rounds:
        return []
    return [min(statistics.median(cold), statistics.median(warm))]

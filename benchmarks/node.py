"""A real sllmd daemon under test, and the operator's doors that a bench needs."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.client import Target
from benchmarks.environments import cache_directory
from benchmarks.servers import Server, free_port
from benchmarks.store import bench_store_directory

SETTLE_SECONDS = 60.0
_SAMPLE = re.compile(r'^sllmd_event_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)


class Node(Server):
    """``sllmd start`` on a configuration of its own; its store is the bench's."""

    def __init__(self, name: str, *, threads: int = 0, replicas_max: int = 4) -> None:
        port = free_port()
        config = cache_directory() / "configs" / f"{name}.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(_config(name, port, threads, replicas_max))
        command: list[str | Path] = [Path(sys.executable).parent / "sllmd", "start", "--config", config]
        super().__init__(name, command, port)

    def target(self, model: str) -> Target:
        """A model on this node, told to run to the last token."""
        return Target(self.base_url, model, extra={"ignore_eos": True})

    @property
    def pid(self) -> int:
        """The daemon's own process, not its workers'."""
        return self.process.pid

    async def load(self, http: aiohttp.ClientSession, model: str, tier: str) -> None:
        """Lift a model to ``dram`` or ``device`` and wait. Raises RuntimeError when it fails."""
        url = f"{self.base_url}/sllmd/v1/models/{model}/load"
        async with http.post(url, json={"tier": tier, "stream": False}) as answer:
            found = await answer.json()
        if found.get("status") != "ready":
            raise RuntimeError(f"loading {model} to {tier}: {answer.status} {found}")

    async def unload(self, http: aiohttp.ClientSession, model: str) -> None:
        """Take a model out of devices and DRAM."""
        async with http.post(f"{self.base_url}/sllmd/v1/models/{model}/unload", json={}) as answer:
            if answer.status != 200:
                raise RuntimeError(f"unloading {model}: {answer.status} {await answer.text()}")

    async def status(self, http: aiohttp.ClientSession) -> dict[str, Any]:
        """The node at a glance."""
        async with http.get(f"{self.base_url}/sllmd/v1/status") as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def stages_ms(self, http: aiohttp.ClientSession, request_id: str) -> dict[str, float]:
        """Parts of a request's load, by name."""
        async with http.get(f"{self.base_url}/sllmd/v1/requests/{request_id}") as answer:
            found = await answer.json()
        stages: dict[str, float] = found["generations"][0]["stages_ms"]
        return stages

    async def settled(self, http: aiohttp.ClientSession) -> None:
        """Until a worker waits for the next model, as it does on a node that was left alone for seconds."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            processes = (await self.status(http))["processes"]
            if sum("waiting" in process["role"] for process in processes) >= 1:
                await asyncio.sleep(0.5)
                return
            await asyncio.sleep(0.05)
        raise RuntimeError(f"{self.name} has no waiting worker after {SETTLE_SECONDS} s")

    async def lag_buckets(self, http: aiohttp.ClientSession) -> dict[float, float]:
        """Upper edge in seconds -> observations of the event loop's lag so far."""
        async with http.get(f"{self.base_url}/metrics") as answer:
            text = await answer.text()
        return {float(edge): float(count) for edge, count in _SAMPLE.findall(text)}


def quantile_seconds(before: Mapping[float, float], after: Mapping[float, float], quantile: float) -> float:
    """A quantile of what a histogram counted between two scrapes, linear within its bucket."""
    edges = sorted(after)
    counts = [after[edge] - before.get(edge, 0.0) for edge in edges]
    if not counts or counts[-1] == 0:
        raise RuntimeError("the histogram counted nothing")
    wanted = quantile * counts[-1]
    lower_edge, lower_count = 0.0, 0.0
    for edge, count in zip(edges, counts, strict=True):
        if count >= wanted:
            if edge == float("inf"):
                return lower_edge
            return lower_edge + (edge - lower_edge) * (wanted - lower_count) / (count - lower_count)
        lower_edge, lower_count = edge, count
    raise AssertionError("a histogram's last bucket holds all")


def _data_directory(name: str) -> Path:
    """One for each daemon, since several run at once; the store in it is the one that all share."""
    directory = cache_directory() / "nodes" / name
    directory.mkdir(parents=True, exist_ok=True)
    store = directory / "store"
    if not store.is_symlink():
        store.symlink_to(bench_store_directory())
    return directory


def _config(name: str, port: int, threads: int, replicas_max: int) -> str:
    """What differs from a stock node: where it lies, and how soon one model may push out another."""
    values: dict[str, dict[str, Any]] = {
        "node": {"name": name, "data_dir": str(_data_directory(name))},
        "api": {
            "listen": [f"127.0.0.1:{port}"],
            "uds": str(cache_directory() / "configs" / f"{name}.sock"),
            "access_log": False,
        },
        "devices": {"backend": "cpu", "replicas_max": replicas_max},
        "engine": {"threads": threads},
        "serving": {"residency_min": "0s", "keep_alive": "-1"},
        "log": {"level": "warning"},
    }
    lines: list[str] = []
    for section, keys in values.items():
        lines.append(f"[{section}]")
        # JSON's strings, numbers and lists of them are TOML's.
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"

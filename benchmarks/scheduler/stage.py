"""Daemons with fake engines whose paths are capped, and checkpoints of a chosen size for them.

A checkpoint is the built-in model's small files and one tensor of random bytes: a fake engine looks at no
weights, and what moves them does not know what they are. It is made once; every node that has it from the
start has hard links of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from sllmd.core.units import MIB
from sllmd.store.builtin import make_builtin
from sllmd.store.importing import import_checkpoint
from sllmd.store.settings import ImportSettings
from sllmd.store.source import CONFIG_FILE, SINGLE_FILE
from sllmd.store.store import Store
from tests.storm.fleet import Daemon, Fleet, fleet

TOKEN_SECONDS, PREFILL_TOKEN_SECONDS, BUILD_SECONDS = 0.02, 0.0001, 0.1
"""Of the fake engines: of the order of a small model on a GPU."""
CAPS: Mapping[str, int] = {"dram": 128 * MIB, "ssd": 48 * MIB, "peer": 32 * MIB, "remote": 24 * MIB}
"""Bytes per second by tier. In proportion to the models, about what servers have."""
CHUNK_BYTES = MIB
SETTINGS: Mapping[str, object] = {
    "loader.slab_bytes": MIB,
    "serving.residency_min": "1s",
    "scheduler.residency_min": "1s",
    "serving.recent_requests_max": 100_000,
    "cluster.voters.settle_seconds": 1.0,
    "devices.cpu_devices": 2,
    "devices.replicas_max": 1,
    "workers.fake.token_seconds": TOKEN_SECONDS,
    "workers.fake.prefill_token_seconds": PREFILL_TOKEN_SECONDS,
    "workers.fake.build_seconds": BUILD_SECONDS,
}
"""Two devices that take one replica each."""
LONG_SECONDS = 300.0


def caps(of: Mapping[str, int] = CAPS) -> dict[str, object]:
    """Settings that cap the paths."""
    names = {"dram": "dram", "ssd": "disk", "peer": "peer", "remote": "remote"}
    return {f"loader.{names[tier]}_bandwidth_max_bytes": each for tier, each in of.items()}


class Shelf:
    """Checkpoints by name, in a store of their own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._store = Store(directory / "store")

    def make(self, name: str, size_bytes: int) -> Path:
        """A checkpoint of about that size; its source, in Hugging Face's layout."""
        source = self._directory / "sources" / name
        source.parent.mkdir(exist_ok=True, parents=True)
        make_builtin("tiny", source)
        config = json.loads((source / CONFIG_FILE).read_text())
        (source / CONFIG_FILE).write_text(json.dumps(config | {"_name_or_path": name}))
        _write_tensor(source / SINGLE_FILE, name, size_bytes)
        return source

    def keep(self, name: str, source: str) -> None:
        """Import it; of an address, register it."""
        settings = ImportSettings(chunk_bytes=CHUNK_BYTES)
        import_checkpoint(self._store, source, name=name, on_progress=lambda _: None, settings=settings)

    def hand_out(self, name: str, home: Path) -> None:
        """The node that lives at ``home`` has it, too."""
        store = home / "data" / "store"
        for part in ("names", "models"):
            (store / part).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._store.root / "names" / f"{name}.json", store / "names" / f"{name}.json")
        [found] = (self._store.root / "models").glob(f"{name}@*")
        shutil.copytree(found, store / "models" / found.name, copy_function=os.link)


def _write_tensor(path: Path, seed: str, size_bytes: int) -> None:
    head = {"model.embed_tokens.weight": {"dtype": "F32", "shape": [size_bytes // 4]}}
    head["model.embed_tokens.weight"]["data_offsets"] = [0, size_bytes // 4 * 4]
    said = json.dumps(head).encode()
    said += b" " * (-len(said) % 8)
    weights = random.Random(seed).randbytes(size_bytes // 4 * 4)
    path.write_bytes(len(said).to_bytes(8, "little") + said + weights)


@asynccontextmanager
async def stage(
    count: int,
    shelf: Shelf,
    holders: Mapping[str, Collection[int]],
    settings: Mapping[str, object] = {},
    *,
    of_each: Mapping[int, Mapping[str, object]] = {},
) -> AsyncIterator[Fleet]:
    """``count`` daemons that know all models. ``holders``: who has which of the shelf's; ``of_each``: what
    one node has for settings of its own."""

    def furnish(index: int, home: Path) -> Mapping[str, object]:
        for name, nodes in holders.items():
            if index in nodes:
                shelf.hand_out(name, home)
        return of_each.get(index, {})

    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        together = {**SETTINGS, **caps(), **settings}
        async with fleet(Path(directory), count, together, furnish=furnish) as group:
            await group.settled(count - 1 + count % 2)
            for daemon in group.daemons:
                for name in holders:
                    await planned(daemon, name)
            yield group


@asynccontextmanager
async def shelf() -> AsyncIterator[Shelf]:
    """An empty one, which goes afterwards."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Shelf(Path(directory))


async def planned(
    daemon: Daemon, model: str, *, way: str | None = None, source: str | None = None, seconds: float = 60.0
) -> dict[str, Any]:
    """The leader's plan, once it has a way; ``way``, ``source``: once the best one is that, from there."""
    deadline = time.monotonic() + seconds
    said: object = None
    while time.monotonic() < deadline:
        status, said = await daemon.ask("GET", f"/sllmd/v1/models/{model}/plan")
        if status == 200 and said["plan"]["ways"]:
            best = said["plan"]["ways"][0]
            is_from = source is None or best["source"].split()[:1] == [source]
            if is_from and way in (None, best["way"]):
                plan: dict[str, Any] = said["plan"]
                return plan
        await asyncio.sleep(0.02)
    raise RuntimeError(f"no plan to {way} {model} from {source or 'anywhere'}: {said}\n{daemon.log()}")


@dataclass(frozen=True, slots=True)
class Cold:
    """A cold start as ``explain`` shows it."""

    node: str
    tier: str
    plan: dict[str, Any]
    """What the leader decided."""
    actual_seconds: float
    """From the request's arrival until it had a replica."""
    attach_seconds: float

    @property
    def error(self) -> float:
        """Relative, of what the leader expected."""
        return abs(float(self.plan["total_seconds"]) - self.actual_seconds) / self.actual_seconds


async def start_cold(daemon: Daemon, model: str) -> Cold:
    """Ask for one token of a model that is not loaded; returns when the leader has seen the replica.

    Raises RuntimeError when it was loaded, or failed."""
    # Who still believes that it serves somewhere sends the request there without asking the leader.
    path = f"/sllmd/v1/models/{model}"
    await daemon.until(path, lambda card: card["state"] == "cold", f"{model} is known to be cold")
    request_id = f"cold-{time.monotonic_ns()}"
    answer = await complete(daemon, model, request_id, prompt_tokens=4, tokens=1)
    if answer is not None:
        raise RuntimeError(f"{model} did not start: {answer}\n{daemon.log()}")
    _, said = await daemon.ask("GET", f"/sllmd/v1/requests/{request_id}")
    [request] = said["generations"]
    if not request["cold"] or request["decision"] is None:
        raise RuntimeError(f"{model} was not started by the leader: {request}")
    await planned(daemon, model, way="use")
    return Cold(
        request["node"],
        request["tier"],
        request["decision"],
        startup_seconds(request),
        request["stages_ms"].get("attach", 0.0) / 1000,
    )


def startup_seconds(request: Mapping[str, Any]) -> float:
    """How long a request waited until it had a replica."""
    return float(request["queue_ms"] + request["load_ms"]) / 1000


async def complete(
    daemon: Daemon, model: str, request_id: str, *, prompt_tokens: int, tokens: int
) -> str | None:
    """A completion of exactly ``tokens``; why it failed, if it did."""
    body = {"model": model, "prompt": "x" * prompt_tokens, "max_tokens": tokens, "ignore_eos": True}
    timeout = aiohttp.ClientTimeout(total=LONG_SECONDS)
    headers = {"x-request-id": request_id}
    try:
        async with daemon.http.post("/v1/completions", json=body, headers=headers, timeout=timeout) as answer:
            said = await answer.text()
            if answer.status != 200:
                return f"{answer.status} {said}"
            produced = json.loads(said)["usage"]["completion_tokens"]
            return None if produced == tokens else f"{produced} tokens instead of {tokens}"
    except (aiohttp.ClientError, TimeoutError) as error:
        return repr(error)


async def unload(daemon: Daemon, model: str, *, keep_dram: bool) -> None:
    """Its replica there goes, and its bytes, unless they are kept in DRAM."""
    path = f"/sllmd/v1/models/{model}/unload"
    status, said = await daemon.ask("POST", path, {"keep_dram": keep_dram}, seconds=60)
    if status != 200:
        raise RuntimeError(f"{model} did not go: {status} {said}")

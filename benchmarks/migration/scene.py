"""The servers of the paper's figure (see ``paper``): near, far, a router without work, and B's storage.

Near and far have a core each, so that neither computes at the other's cost. The storage's link is capped to a
fifth of what near's disk gives: in the paper's cluster (section 7.1) servers have 10 Gbit/s to each other and
one PCIe 4.0 NVMe each, which reads some 6 GB/s. B has 1.1 GB.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from benchmarks.environments import log
from benchmarks.migration.stage import MODEL, Server, knows, put_small
from benchmarks.models import model_directory
from benchmarks.store import imported
from sllmd.store.importing import import_checkpoint
from sllmd.store.store import Store
from tests.waiting import until

B = "b"
WEIGHTS = "random-1g"
LINK_SHARE = 0.2
SETTINGS: dict[str, object] = {
    "devices.replicas_max": 1,
    "engine.cache_tokens": 16384,
    "loader.dram_budget": "2GiB",
    "loader.reserve_bytes": "1536MiB",
    "serving.residency_min": "0s",
}
"""One device that takes one replica; memory that has been touched, as of servers that have served before."""


@dataclass
class Scene:
    """See the module."""

    near: Server
    far: Server
    router: Server
    storage_url: str
    imports: int = 0

    @property
    def remote_b(self) -> str:
        """B's name at far; another one each time."""
        return f"{B}-{self.imports}"

    def prepare(self) -> None:
        """A serves at near; far has only A's bytes, and B is nowhere but on near's disk."""
        self.far.live.ask(f"/sllmd/v1/models/{MODEL}/unload", {"keep_dram": True})
        self.near.load()
        wanted = [([MODEL], True, {MODEL}), ([], True, {MODEL})]
        try:
            until(lambda: self._state() == wanted, "near and far are as they were")
        except AssertionError:
            raise AssertionError(f"near and far are {self._state()}, not {wanted}") from None

    def _state(self) -> list[tuple[list[str], bool, set[str]]]:
        """Of near and far: replicas, whether a worker waits, what is in DRAM."""
        found = []
        for live in (self.near.live, self.far.live):
            status = live.status()
            waits = any(each["role"] == "waiting" for each in status["processes"])
            found.append(([each["model"] for each in status["replicas"]], waits, set(live.copies())))
        return found

    def forget_b(self) -> None:
        """Out of both servers' memory, and off far's disk."""
        self.near.live.ask(f"/sllmd/v1/models/{B}/unload", {})
        self.far.live.ask(f"/sllmd/v1/models/{self.remote_b}/unload", {})
        store = Store(self.far.directory / "data" / "store")
        store.remove(self.remote_b)
        self.imports += 1
        import_checkpoint(store, self.storage_url, name=self.remote_b, on_progress=lambda _: None)


@contextmanager
def scene() -> Iterator[Scene]:
    """All of it, as before the first request."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        storage_url = stack.enter_context(_storage(imported(WEIGHTS).directory))
        near = Server("near", directory / "near", settings=SETTINGS, core=0)
        put_small(near.directory)
        _put_b(near.directory)
        _start(stack, near)
        link = _disk_bytes_per_second(near) * LINK_SHARE
        log(f"paper: the link to the storage gives {link / 1e6:.0f} MB/s")
        capped = {**SETTINGS, "loader.remote_bandwidth_max_bytes": int(link)}
        far = Server("far", directory / "far", join=near, settings=capped, core=1)
        put_small(far.directory)
        router = Server("router", directory / "router", join=near)
        here = Scene(near, far, router, storage_url)
        store = Store(far.directory / "data" / "store")
        import_checkpoint(store, storage_url, name=here.remote_b, on_progress=lambda _: None)
        for server in (far, router):
            _start(stack, server)
        far.live.ask(f"/sllmd/v1/models/{MODEL}/load", {"tier": "dram", "stream": False})
        until(lambda: knows(router), "the router knows A")
        yield here


def _start(stack: ExitStack, server: Server) -> None:
    server.start()
    stack.callback(server.kill)


def _put_b(directory: Path) -> None:
    """The weights of ``WEIGHTS`` with a digest of their own: no server takes the storage's for these."""
    source = directory / "b"
    left_out = shutil.ignore_patterns("model.bin", "model.tensors")
    shutil.copytree(model_directory(WEIGHTS), source, ignore=left_out)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "_name_or_path": B}))
    store = Store(directory / "data" / "store")
    import_checkpoint(store, str(source), name=B, on_progress=lambda _: None)
    shutil.rmtree(source)


def _disk_bytes_per_second(near: Server) -> float:
    """Near loads B twice, the second time into memory that it has: what its disk gave then."""
    rate = 0.0
    for _ in range(2):
        loaded = near.live.ask(f"/sllmd/v1/models/{B}/load", {"tier": "dram", "stream": False}).body
        rate = loaded["current_bytes"] / loaded["seconds"]
        near.live.ask("/sllmd/v1/cache/evict", {"model": B})
    return rate


@contextmanager
def _storage(directory: Path) -> Iterator[str]:
    """A server of ranges, in a thread of this process."""
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_static("/", directory)
    runner = web.AppRunner(app, access_log=None)

    async def serve() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    port = loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

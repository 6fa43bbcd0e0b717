"""A whole daemon in this process, with the fake engine, over real HTTP on a port of the kernel's choice."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import uvloop

from sllmd.cluster.node import ClusterNode
from sllmd.config.settings import Config
from sllmd.daemon import Daemon
from sllmd.store.builtin import make_builtin
from sllmd.store.importing import import_checkpoint
from sllmd.store.store import Store

LETTERS = [64, 64 + 26]
"""Ids of a to z in the built-in model's vocabulary."""
MODELS = {
    "tiny": {},
    "letters": {"token_ids": LETTERS},
    "slow": {"token_ids": LETTERS, "token_seconds": 0.01},
    "never": {"token_ids": LETTERS, "token_seconds": 3600.0},
    "stops": {"token_ids": LETTERS, "stop_after_tokens": 5},
    "breaks": {"token_ids": LETTERS, "fail_at_token": 3},
    "breaks-at-once": {"token_ids": LETTERS, "fail_at_token": 0},
    "unbuildable": {"build_error": "the weights make no sense"},
    "building": {"build_seconds": 3600.0},
}
"""Name -> how the fake engine behaves for it."""


@pytest.fixture(scope="session")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """The daemon's loop, whose transports differ from asyncio's in the details that matter here."""
    return uvloop.EventLoopPolicy()


ALIASES = ("gpt-3.5-turbo-instruct", "gpt-6-astra", "model")
"""Of ``letters``: the names that the tests of OpenAI's SDK use."""


@pytest.fixture(scope="session")
def data_directory(tmp_path_factory) -> Path:
    """A node's data with every model of MODELS, and ``chatless``, which has no chat template."""
    root = tmp_path_factory.mktemp("data")
    store = Store(root / "store")
    for name, behaviour in MODELS.items():
        source = root / "sources" / name
        source.parent.mkdir(exist_ok=True)
        make_builtin("tiny", source)
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, "fake": behaviour}))
        import_checkpoint(store, str(source), name=name, on_progress=lambda _: None)
    source = root / "sources" / "chatless"
    make_builtin("tiny", source)
    (source / "tokenizer_config.json").write_text("{}")
    import_checkpoint(store, str(source), name="chatless", on_progress=lambda _: None)
    for alias in ALIASES:
        store.alias(alias, "letters")
    return root


@dataclass
class Live:
    """A daemon that serves, and a client for it."""

    daemon: Daemon
    url: str
    client: aiohttp.ClientSession

    async def post(self, path: str, body: object = None, **options) -> aiohttp.ClientResponse:
        if body is not None:
            options["json"] = body
        return await self.client.post(self.url + path, **options)

    async def get(self, path: str, **options) -> aiohttp.ClientResponse:
        return await self.client.get(self.url + path, **options)

    async def complete(self, model: str = "letters", prompt: object = "hi", **fields) -> dict:
        response = await self.post("/v1/completions", {"model": model, "prompt": prompt, **fields})
        body = await response.json()
        assert response.status == 200, body
        return body

    async def stream(self, path: str, body: dict) -> list[dict | str]:
        """Every event of a stream; JSON parsed, the rest as text."""
        response = await self.post(path, {**body, "stream": True})
        assert response.status == 200, await response.text()
        return events_of(await response.read())


def events_of(raw: bytes) -> list[dict | str]:
    """What a strict reader of server-sent events sees, comments included."""
    assert raw.endswith(b"\n\n")
    events = []
    for block in raw.decode().removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            events.append(block)
            continue
        assert block.startswith("data: "), block
        payload = block.removeprefix("data: ")
        events.append(payload if payload == "[DONE]" else json.loads(payload))
    return events


@asynccontextmanager
async def serving(
    data_directory: Path, directory: Path, cluster_directory: Path | None = None, **sections
) -> AsyncIterator[Live]:
    """A daemon with the fake engine. ``sections``: of the configuration."""
    values = {
        "node": {"name": "test", "data_dir": data_directory},
        "workers": {"engine": "fake", "in_process": True},
        "loader": {"dram_budget": "256MB", "slab_bytes": "1MiB", "pin": False, "headroom_bytes": 0},
        **sections,
    }
    values["api"] = {
        "listen": ["127.0.0.1:0"],
        "uds": directory / "sllmd.sock",
        "keys_file": directory / "keys.toml",
        "access_log": False,
        **sections.get("api", {}),
    }
    async with AsyncExitStack() as rooms, aiohttp.ClientSession() as client:
        config = Config.model_validate(values)
        node = ClusterNode(
            config.cluster, directory=cluster_directory or directory / "cluster", name="test", dev=True
        )
        daemon = await Daemon.start(config, node, rooms)
        yield Live(daemon, daemon.operator.listen[0], client)


@pytest.fixture
async def live(data_directory, tmp_path) -> AsyncIterator[Live]:
    async with serving(data_directory, tmp_path) as live:
        yield live


@pytest.fixture
def serve(data_directory, tmp_path):
    """``async with serve(api={...}) as live``: a daemon with other settings."""
    return lambda **sections: serving(data_directory, tmp_path, **sections)

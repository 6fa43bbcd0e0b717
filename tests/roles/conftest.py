"""A node without HTTP: a real store, a real DRAM tier, the fake engine in this process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sllmd.config.settings import EngineSettings
from sllmd.core.ids import NodeId, RequestId
from sllmd.engine.devices import Device
from sllmd.engine.fake import FakeSettings
from sllmd.engine.protocol import Sampling
from sllmd.engine.settings import WorkerSettings
from sllmd.engine.supervisor import Supervisor
from sllmd.loader.settings import LoaderSettings
from sllmd.loader.tier import DramTier
from sllmd.roles.agent import Agent
from sllmd.roles.dispatch import OnlyHere
from sllmd.roles.following import Following
from sllmd.roles.generation import GenerationRequest
from sllmd.roles.library import Library
from sllmd.roles.operator import Operator
from sllmd.roles.place import Here
from sllmd.roles.resumption import Resumption
from sllmd.roles.router import Router
from sllmd.roles.settings import DeviceSettings, MirrorSettings, ModelSettings, ServingSettings
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.store.builtin import make_builtin
from sllmd.store.importing import import_checkpoint
from sllmd.store.store import Store
from sllmd.telemetry.feed import Feed
from sllmd.wire.rpc.connection import Connection

MODELS = ("a", "b", "c")


@dataclass(frozen=True, slots=True)
class Node:
    """The rooms under test."""

    store: Store
    library: Library
    tier: DramTier
    agent: Agent
    router: Router
    operator: Operator


MakeNode = Callable[..., AbstractAsyncContextManager[Node]]


@pytest.fixture(scope="session")
def store_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with three models of different digests."""
    root = tmp_path_factory.mktemp("roles")
    store = Store(root / "store")
    for number, name in enumerate(MODELS):
        source = root / name
        make_builtin("tiny", source)
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | {"rope_theta": 10_000.0 + number}))
        import_checkpoint(store, str(source), name=name, on_progress=lambda _: None)
    return store.root


@pytest.fixture
def make_node(store_root: Path) -> MakeNode:
    """``async with make_node(devices=..., serving=..., fake=...) as node``."""

    @asynccontextmanager
    async def make(
        *,
        devices: DeviceSettings | None = None,
        serving: ServingSettings | None = None,
        loader: LoaderSettings | None = None,
        fake: FakeSettings | None = None,
        models: dict[str, ModelSettings] | None = None,
        batch_max: int = 8,
        root: Path | None = None,
        in_process: bool = True,
    ) -> AsyncIterator[Node]:
        device_settings = devices or DeviceSettings()
        serving_settings = serving or ServingSettings(residency_min=0)
        store = Store(root or store_root)
        tier = DramTier(
            loader or LoaderSettings(dram_budget="64MiB", slab_bytes=1 << 20, pin=False),
            quarantine=store.quarantine,
            complete_remote=store.complete_remote,
        )
        supervisor = Supervisor(
            WorkerSettings(engine="fake", in_process=in_process, fake=fake or FakeSettings())
        )
        await supervisor.start()
        cpus = tuple(Device(f"cpu:{i}", "cpu", None, "CPU") for i in range(device_settings.cpu_devices))
        agent = Agent(
            tier=tier,
            supervisor=supervisor,
            devices=cpus,
            device_settings=device_settings,
            serving_settings=serving_settings,
            engine_options=EngineSettings(threads=1, batch_max=batch_max).options,
            model_settings=models or {},
            scheduler_settings=SchedulerSettings(),
        )
        library = Library(store)
        here = Here(agent, library.obtain_exactly, NodeId(""))
        router = Router(library, agent, OnlyHere(here), serving_settings)
        operator = Operator(
            node="test",
            store_directory=str(store.root),
            devices=cpus,
            tier=tier,
            supervisor=supervisor,
            agent=agent,
            router=router,
            following=Following(Feed(100), None),
            resumption=Resumption(MirrorSettings(), nobody, frozenset),
        )
        try:
            yield Node(store, library, tier, agent, router, operator)
        finally:
            await agent.close()
            await supervisor.close()
            await tier.close()

    return make


async def nobody(_node: NodeId) -> Connection:
    """A node without a cluster has no connections."""
    raise AssertionError("there is nobody to ask")


def request(model: str = "a", *, max_tokens: int = 4, **changes: object) -> GenerationRequest:
    """A request for a few tokens."""
    asked: dict[str, object] = {
        "request_id": RequestId("req-1"),
        "model": model,
        "prompt_ids": (72, 101, 108),
        "sampling": Sampling(seed=1, max_tokens=max_tokens, temperature=0.0),
    }
    return GenerationRequest(**(asked | changes))  # type: ignore[arg-type]

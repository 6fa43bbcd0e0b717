"""Clusters of nodes that agree, by whichever implementation, and what may happen to them."""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sllmd.cluster.catalogue import Catalogue, snapshot
from sllmd.cluster.control import ControlStore
from sllmd.cluster.etcd.control import EtcdControl
from sllmd.cluster.etcd.settings import EtcdSettings
from sllmd.cluster.journal import JournalSettings
from sllmd.cluster.member import ControlSettings
from sllmd.core.ids import NodeId
from tests.cluster.cable import Cable, plugged
from tests.cluster.etcd_process import EtcdCluster
from tests.cluster.member import nodes as member_nodes
from tests.waiting import PATIENCE_SECONDS, eventually

PATIENT = {"propose_seconds": 60.0, "read_seconds": 60.0}
HASTY = {"propose_seconds": 5.0, "read_seconds": 5.0}
"""Where nobody decides, and a test waits until that is said."""
SNAPSHOT_COMMANDS = 40
LEASE_SECONDS = 4.0
"""Of who leads in an etcd: neither a slow disk nor a busy machine may cost it."""


async def leader_of(nodes: list[ControlStore]) -> ControlStore:
    """The node that leads, once one does."""
    await eventually(lambda: any(node.leadership().is_me for node in nodes))
    return next(node for node in nodes if node.leadership().is_me)


async def same_catalogue(nodes: list[ControlStore]) -> Catalogue:
    """What all nodes hold, once they have applied as much; fails if they then differ."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            catalogues = [await node.read() for node in nodes]
            if len({catalogue.revision for catalogue in catalogues}) == 1:
                break
    assert len({snapshot(catalogue) for catalogue in catalogues}) == 1
    return catalogues[0]


class Stores(ABC):
    """Some nodes of one cluster, in this process."""

    nodes: list[ControlStore]

    @abstractmethod
    async def add(self) -> ControlStore:
        """One more node, which knows nothing yet."""

    @abstractmethod
    async def kill(self, node: ControlStore) -> None:
        """It is gone, without a word to the others."""

    @abstractmethod
    async def disturb(self) -> None:
        """Something that decides dies and comes back."""

    @abstractmethod
    async def stop_deciding(self) -> ControlStore:
        """Nobody can agree on anything; a node that lives on nevertheless."""

    @abstractmethod
    async def go_on(self) -> None:
        """After ``stop_deciding``: agreement is possible again."""


class EtcdStores(Stores):
    """Nodes over an etcd, each on cables of its own."""

    def __init__(self, etcd: EtcdCluster, stack: AsyncExitStack, **settings: Any) -> None:
        self.nodes = []
        self.etcd = etcd
        self.cables: dict[ControlStore, list[Cable]] = {}
        self._stack = stack
        self._cluster_id = secrets.token_hex(8)
        self._settings = {
            "lease_seconds": LEASE_SECONDS, "pulse_seconds": 0.2, "retry_seconds": 0.05,
            "hand_over_seconds": 60.0, "snapshot_commands": SNAPSHOT_COMMANDS, **PATIENT, **settings,
        }  # fmt: skip

    async def add(self, **settings: Any) -> EtcdControl:
        ports = [urlsplit(endpoint).port or 0 for endpoint in self.etcd.endpoints]
        cables = [await self._stack.enter_async_context(plugged(port)) for port in ports]
        endpoints = tuple(f"http://127.0.0.1:{cable.port}" for cable in cables)
        control = await EtcdControl.start(
            node=NodeId(f"node{len(self.cables)}"),
            cluster_id=self._cluster_id,
            settings=EtcdSettings(endpoints=endpoints, **{**self._settings, **settings}),
        )
        self._stack.push_async_callback(control.close)
        self.nodes.append(control)
        self.cables[control] = cables
        return control

    async def kill(self, node: ControlStore) -> None:
        for cable in self.cables[node]:
            await cable.pull_out()
        self.nodes.remove(node)
        await node.close()

    async def disturb(self) -> None:
        self.etcd.members[0].kill()
        await asyncio.to_thread(self.etcd.members[0].start)

    async def stop_deciding(self) -> ControlStore:
        for member in self.etcd.members:
            member.kill()
        for cable in self._all_cables():
            await cable.pull_out()
        return self.nodes[0]

    async def go_on(self) -> None:
        dead = [member for member in self.etcd.members if not member.runs]
        await asyncio.gather(*(asyncio.to_thread(member.start) for member in dead))
        for cable in self._all_cables():
            await cable.plug_in()

    def _all_cables(self) -> list[Cable]:
        return [cable for node in self.nodes for cable in self.cables[node]]


class RaftStores(Stores):
    """Nodes that agree themselves: so many members, and one that keeps no log."""

    def __init__(self, cluster: member_nodes.Cluster, names: str) -> None:
        self.nodes = []
        self._cluster = cluster
        self._names = names
        self._stopped: list[member_nodes.Node] = []
        self._added = 0

    async def found(self) -> None:
        self.nodes += [node.control for node in await self._cluster.found(self._names)]
        await self.add()

    async def add(self) -> ControlStore:
        self._added += 1
        node = await self._cluster.add(f"follower{self._added}")
        self.nodes.append(node.control)
        return node.control

    async def kill(self, node: ControlStore) -> None:
        self.nodes.remove(node)
        await self._by_control(node).stop()

    async def disturb(self) -> None:
        victim = await self._cluster.leader()
        await self._stop(victim)
        await self._start(victim)

    async def stop_deciding(self) -> ControlStore:
        for name in self._names[: len(self._names) // 2 + 1]:
            self._stopped.append(self._cluster[name])
            await self._stop(self._stopped[-1])
        survivor = self.nodes[0]
        if len(self._names) > 1:  # a member notices; a follower goes on asking whom it followed
            await eventually(lambda: survivor.leadership().leader is None)
        return survivor

    async def go_on(self) -> None:
        while self._stopped:
            await self._start(self._stopped.pop())

    async def _stop(self, node: member_nodes.Node) -> None:
        self.nodes.remove(node.control)
        await node.stop()

    async def _start(self, node: member_nodes.Node) -> None:
        again = await self._cluster.add(node.name)
        self.nodes.append(again.control)

    def _by_control(self, control: ControlStore) -> member_nodes.Node:
        return next(node for node in self._cluster.nodes.values() if node.control is control)


@asynccontextmanager
async def etcd_stores(etcd: EtcdCluster, size: int = 3, **settings: Any) -> AsyncIterator[EtcdStores]:
    """A cluster of its own in this etcd, with so many nodes."""
    async with AsyncExitStack() as stack:
        stores = EtcdStores(etcd, stack, **settings)
        for _ in range(size):
            await stores.add()
        try:
            yield stores
        finally:
            await stores.go_on()


@asynccontextmanager
async def raft_stores(directory: Path, names: str, **settings: Any) -> AsyncIterator[RaftStores]:
    """These members, and a node that follows them."""
    control = ControlSettings(beat_seconds=0.3, **{**PATIENT, **settings})
    raft = member_nodes.RAFT.model_copy(update={"trailing_entries": SNAPSHOT_COMMANDS // 4})
    journal = JournalSettings(snapshot_entries=SNAPSHOT_COMMANDS)
    options = {"control_settings": control, "settings": raft, "journal_settings": journal}
    async with member_nodes.a_cluster(directory, **options) as cluster:
        stores = RaftStores(cluster, names)
        await stores.found()
        yield stores

"""Nodes of one cluster in this process, over real connections on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sllmd.cluster.catalogue.commands import NodeAdmit, SettingPut
from sllmd.cluster.journal import DirectoryFiles, JournalSettings
from sllmd.cluster.member import ControlSettings, RaftControl, VoterSettings
from sllmd.cluster.member.disk import OpenDirectory
from sllmd.cluster.raft import RaftSettings
from sllmd.cluster.raft.entries import Membership
from sllmd.core.errors import PeerUnreachable
from sllmd.core.ids import NodeId
from sllmd.wire.rpc.connection import Connection, Local
from sllmd.wire.rpc.hello import Hello
from sllmd.wire.rpc.listener import Listener
from sllmd.wire.rpc.methods import Methods
from sllmd.wire.rpc.peers import Address, Peers
from sllmd.wire.rpc.settings import RpcSettings
from sllmd.wire.tls import Tls
from tests.cluster.play import members
from tests.ports import free_ports
from tests.waiting import eventually

RAFT = RaftSettings(election_seconds_min=1.0, election_seconds_max=1.5)
"""Nobody leads anew only because a disk or the machine was busy; ``Node.stand`` is how to hurry."""
VOTERS = VoterSettings(settle_seconds=0.3, dead_seconds=2.0)
CONTROL = ControlSettings(propose_seconds=60, read_seconds=60, beat_seconds=0.3)


class Node:
    def __init__(self, cluster: Cluster, name: str, tls: Path | None) -> None:
        self.cluster, self.name, self.node = cluster, name, NodeId(name)
        self.methods = Methods()
        self.local = Local(
            hello=lambda: Hello("test", self.node),
            methods=self.methods,
            settings=RpcSettings(redial_max_seconds=0.3),
            tls=Tls(tls) if tls else None,
        )
        self.listener, self.peers = Listener(self.local), Peers(self.local)
        self.control: RaftControl

    async def start(self, founding: Membership | None, **options: Any) -> None:
        cluster = self.cluster
        options = {
            "settings": RAFT,
            "journal_settings": JournalSettings(),
            "voter_settings": VOTERS,
            "control_settings": CONTROL,
            **cluster.options,
            **options,
        }
        self.control = await RaftControl.start(
            node=self.node,
            directory=cluster.directory / self.name,
            methods=self.methods,
            connect=self.connect,
            founding=founding,
            alive=lambda: list(cluster.nodes),
            **options,
        )
        port = cluster.addresses[self.node].port if self.node in cluster.addresses else free_ports()
        cluster.addresses[self.node] = Address("127.0.0.1", await self.listener.start("127.0.0.1", port))

    def stand(self) -> None:
        """As when its time to wait for a leader is over."""
        shell = self.control._seat.shell
        assert shell is not None
        shell.raft.election_deadline = asyncio.get_running_loop().time()
        shell._tick()

    async def connect(self, node: NodeId) -> Connection:
        if node not in self.cluster.addresses:
            raise PeerUnreachable(f"nobody knows where {node} is")
        return await self.peers.connection(node, self.cluster.addresses[node])

    async def stop(self) -> None:
        self.cluster.nodes.pop(self.node, None)
        await self.control.close()
        await self.peers.close()
        await self.listener.close()

    @property
    def keys(self) -> list[str]:
        return [key for key, _ in self.control.view().catalogue.settings.items()]

    async def put(self, key: str, value: bytes = b"") -> Any:
        return await self.control.propose(SettingPut(key, value, None))

    async def admit(self, name: str, **labels: str) -> Any:
        return await self.control.propose(NodeAdmit(NodeId(name), name, "", "", {}, labels, None))


class Cluster:
    def __init__(self, directory: Path, tls: Callable[[str], Path] | None, options: dict[str, Any]) -> None:
        self.directory, self.tls, self.options = directory, tls, options
        self.nodes: dict[NodeId, Node] = {}
        self.addresses: dict[NodeId, Address] = {}

    async def add(self, name: str, founding: str = "", **options: Any) -> Node:
        node = Node(self, name, self.tls(name) if self.tls else None)
        await node.start(members(founding) if founding else None, **options)
        self.nodes[node.node] = node
        return node

    async def found(self, names: str) -> list[Node]:
        nodes = [await self.add(name, founding=names) for name in names]
        nodes[0].stand()
        await self.leader()
        return nodes

    async def leader(self) -> Node:
        """The node whose epoch stands, as the others see it, too."""

        def leading() -> list[Node]:
            return [node for node in self.nodes.values() if node.control.leadership().is_me]

        await eventually(leading, "somebody leads")
        return leading()[0]

    def __getitem__(self, name: str) -> Node:
        return self.nodes[NodeId(name)]


@asynccontextmanager
async def a_cluster(
    directory: Path, tls: Callable[[str], Path] | None = None, **options: Any
) -> AsyncIterator[Cluster]:
    cluster = Cluster(directory, tls, options)
    try:
        yield cluster
    finally:
        await asyncio.gather(*(node.stop() for node in list(cluster.nodes.values())))


__all__ = ["CONTROL", "RAFT", "VOTERS", "Cluster", "DirectoryFiles", "Node", "OpenDirectory", "a_cluster"]

"""Nodes that talk over real rpc on loopback: what stands between two routers in the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sllmd.core.ids import NodeId
from sllmd.wire.rpc.connection import Connection, Local
from sllmd.wire.rpc.hello import Hello
from sllmd.wire.rpc.listener import Listener
from sllmd.wire.rpc.methods import Methods
from sllmd.wire.rpc.peers import Address, Peers
from sllmd.wire.rpc.settings import RpcSettings

HOST = "127.0.0.1"


@dataclass
class Network:
    """Who listens where."""

    addresses: dict[NodeId, Address] = field(default_factory=dict)
    settings: RpcSettings = field(default_factory=lambda: RpcSettings(redial_seconds=0.01))


@dataclass
class Speaker:
    """A node that answers ``methods`` and can call the others."""

    node: NodeId
    methods: Methods
    network: Network
    listener: Listener
    peers: Peers

    async def connection(self, node: NodeId) -> Connection:
        return await self.peers.connection(node, self.network.addresses[node])


@asynccontextmanager
async def speaking(network: Network, name: str, methods: Methods | None = None) -> AsyncIterator[Speaker]:
    """A node of ``network``; its methods may be filled until somebody calls."""
    node, methods = NodeId(name), methods or Methods()
    local = Local(lambda: Hello("cluster", node), methods, network.settings, None)
    listener, peers = Listener(local), Peers(local)
    network.addresses[node] = Address(HOST, await listener.start(HOST, 0))
    try:
        yield Speaker(node, methods, network, listener, peers)
    finally:
        await peers.close()
        await listener.close()

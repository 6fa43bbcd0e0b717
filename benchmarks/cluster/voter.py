"""One node of the agreement bench: raft, its journal and its calls, without the rest of a daemon.

``python -m benchmarks.cluster.voter DIRECTORY NODE ADDRESSES`` runs until it is killed; ``ADDRESSES`` is
JSON, node -> port on loopback. Its journal is fsynced as in any daemon.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from sllmd.cluster.member import RaftControl
from sllmd.cluster.raft.entries import Membership
from sllmd.core.ids import NodeId
from sllmd.telemetry.logs import configure_logs
from sllmd.telemetry.settings import LogSettings
from sllmd.wire.rpc.connection import Connection, Local
from sllmd.wire.rpc.hello import Hello
from sllmd.wire.rpc.listener import Listener
from sllmd.wire.rpc.methods import Methods
from sllmd.wire.rpc.peers import Address, Peers
from sllmd.wire.rpc.settings import RpcSettings

HOST = "127.0.0.1"


@asynccontextmanager
async def taking_part(
    directory: Path, node: NodeId, addresses: dict[NodeId, int]
) -> AsyncIterator[RaftControl]:
    """A voter if it is one of ``addresses``, else a node that follows them without a log."""
    methods = Methods()
    local = Local(lambda: Hello("bench", node), methods, RpcSettings(), None)
    listener, peers = Listener(local), Peers(local)

    async def connect(other: NodeId) -> Connection:
        return await peers.connection(other, Address(HOST, addresses[other]))

    control = await RaftControl.start(
        node=node,
        directory=directory,
        methods=methods,
        connect=connect,
        alive=lambda: list(addresses),
        founding=Membership(tuple(sorted(addresses))) if node in addresses else None,
    )
    if node in addresses:
        await listener.start(HOST, addresses[node])
    try:
        yield control
    finally:
        await control.close()
        await peers.close()
        await listener.close()


async def main() -> None:
    """Vote until killed."""
    configure_logs(LogSettings(level="warning"), stream=sys.stderr)
    addresses = {NodeId(node): port for node, port in json.loads(sys.argv[3]).items()}
    async with taking_part(Path(sys.argv[1]), NodeId(sys.argv[2]), addresses):
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main())

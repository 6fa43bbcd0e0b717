"""Whole nodes of clusters in this process, on ports from the kernel, closed whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from sllmd.cluster.node import ClusterNode
from sllmd.cluster.settings import ClusterSettings
from sllmd.core.errors import SllmdError
from sllmd.wire.token import parse_token
from tests.waiting import PATIENCE_SECONDS

QUICK = {
    "raft": {"election_seconds_min": 1.0, "election_seconds_max": 1.5},
    "control": {"propose_seconds": 60.0, "read_seconds": 60.0},
    "voters": {"settle_seconds": 0.3},
    "gossip": {"gossip_seconds": 0.05, "dead_ping_seconds": 0.5},
    "rpc": {"redial_max_seconds": 0.3},
}
"""Quick where nothing is lost by it: nobody is believed dead because the machine is busy."""


class Nodes:
    """Starts and stops them."""

    def __init__(self, directory: Path, rooms: AsyncExitStack) -> None:
        self.directory = directory
        self._rooms = rooms

    def make(self, name: str, *, dev: bool = False, directory: str = "", **settings: Any) -> ClusterNode:
        """A node that has not started; ``join`` takes nodes or addresses."""
        join = [one.address if isinstance(one, ClusterNode) else one for one in settings.pop("join", ())]
        values = {"listen": "127.0.0.1:0", **QUICK, **settings, "join": join}
        return ClusterNode(
            ClusterSettings.model_validate(values),
            directory=self.directory / (directory or name) / "cluster",
            name=name,
            dev=dev,
        )

    async def start(self, node: ClusterNode) -> ClusterNode:
        """It runs until the test is over, or until ``close``."""
        await asyncio.wait_for(node.start(), PATIENCE_SECONDS)
        self._rooms.push_async_callback(node.close)
        return node

    async def found(self, name: str, **settings: Any) -> ClusterNode:
        """A cluster of one."""
        return await self.start(self.make(name, **settings))

    async def join(self, name: str, through: ClusterNode, **settings: Any) -> ClusterNode:
        """One more, with a fresh token where one is needed."""
        node = self.make(name, dev=through.dev, join=[through], **settings)
        if through.tokens is not None:
            token, _ = await through.tokens.create()
            node.token = parse_token(str(token))
        return await self.start(node)


@asynccontextmanager
async def nodes(directory: Path) -> AsyncIterator[Nodes]:
    """Nodes below ``directory``."""
    async with AsyncExitStack() as rooms:
        yield Nodes(directory, rooms)


def names(node: ClusterNode) -> set[str]:
    """Who was admitted, as this node knows it."""
    return {one.name for one in node.control.view().catalogue.nodes.values()}


async def why_not(node: ClusterNode) -> SllmdError:
    """The error that keeps a node from starting."""
    try:
        await asyncio.wait_for(node.start(), PATIENCE_SECONDS)
    except SllmdError as error:
        return error
    await node.close()
    raise AssertionError("it started")

"""Whole nodes whose agreement an etcd keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sllmd.cluster.catalogue.commands import NodeRemove
from tests.cluster.etcd_process import EtcdCluster
from tests.cluster.nodes import Nodes, names, nodes
from tests.waiting import PATIENCE_SECONDS, eventually


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with nodes(tmp_path) as made:
        yield made


async def test_a_node_that_was_removed_while_it_was_away_stops(fleet: Nodes, etcd: EtcdCluster) -> None:
    """It hears so from etcd, in its first view, before it talks to any other node."""
    kept = {"store": "etcd", "etcd": {"endpoints": etcd.endpoints}}
    one = await fleet.found("one", **kept)
    two = await fleet.join("two", one, **kept)
    await eventually(lambda: names(one) == {"one", "two"}, "both are admitted")
    await two.close()
    await one.control.propose(NodeRemove(two.identity.node, None))
    await one.close()
    back = await fleet.start(fleet.make("two", **kept))
    error = await asyncio.wait_for(asyncio.shield(back.failed), PATIENCE_SECONDS)
    assert "was removed from the cluster" in str(error)

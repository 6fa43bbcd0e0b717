"""The daemon's parts start in order and stop in reverse, however far a start had come."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from sllmd.cluster.node import ClusterNode
from sllmd.config.settings import Config
from sllmd.core.errors import ConfigError
from sllmd.daemon import Daemon


async def start(directory: Path, rooms: AsyncExitStack, port: int = 0) -> Daemon:
    config = Config.model_validate(
        {
            "node": {"name": "one", "data_dir": directory},
            "workers": {"engine": "fake", "in_process": True},
            "loader": {"dram_budget": "64MB", "slab_bytes": "1MiB", "pin": False, "headroom_bytes": 0},
            "api": {"listen": [f"127.0.0.1:{port}"], "uds": None, "keys_file": directory / "keys.toml"},
        }
    )
    node = ClusterNode(config.cluster, directory=directory / "cluster", name="one", dev=True)
    return await Daemon.start(config, node, rooms)


def own_threads() -> set[threading.Thread]:
    """Those of the loop's executor stay until the loop ends."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


async def test_a_start_that_fails_at_the_last_part_leaves_nothing_behind(tmp_path: Path) -> None:
    threads = own_threads()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with AsyncExitStack() as rooms:
            with pytest.raises(ConfigError, match="in use"):
                await start(tmp_path, rooms, taken.getsockname()[1])
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert own_threads() == threads
    async with AsyncExitStack() as rooms:
        daemon = await start(tmp_path, rooms)
        assert daemon.operator.listen, "the directory and its ports are free again"

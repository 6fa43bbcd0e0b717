"""What an operator sees of loads, from the first byte to the replica."""

from __future__ import annotations

import asyncio
import os

from sllmd.engine.fake import FakeSettings
from sllmd.engine.process import ProcessStats
from sllmd.loader.settings import LoaderSettings
from sllmd.roles.operator import process_statuses
from sllmd.roles.status import ReplicaStatus
from tests.roles.conftest import MakeNode
from tests.waiting import eventually


async def test_a_load_says_each_step_once_and_ends_ready(make_node: MakeNode) -> None:
    """A build that takes its time must not be told in a flood: bytes do not move any more."""
    async with make_node(fake=FakeSettings(build_seconds=0.3)) as node:
        steps = [step async for step in node.operator.load("a")]
        assert steps[-1].status == "ready"
        assert steps[-1].current_bytes == steps[-1].total_bytes
        assert len(steps) < 12


async def test_a_load_into_dram_ends_ready_and_leaves_the_copy(make_node: MakeNode) -> None:
    async with make_node() as node:
        steps = [step async for step in node.operator.load("a", "dram")]
        assert steps[-1].status == "ready"
        assert node.agent.where(node.store.resolve("a")) == "dram"
        assert node.agent.residences() == ()


async def test_a_failed_load_ends_with_an_error_and_its_code(make_node: MakeNode) -> None:
    loader = LoaderSettings(dram_budget="128KiB", slab_bytes=4096, pin=False, headroom_bytes=0)
    async with make_node(loader=loader) as node:
        steps = [step async for step in node.operator.load("a")]
        assert (steps[-1].status, steps[-1].code) == ("error", "insufficient_capacity")


async def test_whoever_stops_watching_a_load_leaves_nothing_behind(make_node: MakeNode) -> None:
    async with make_node(fake=FakeSettings(build_seconds=30)) as node:
        steps = node.operator.load("a")
        await anext(steps)
        await steps.aclose()
        await eventually(lambda: not node.agent.residences())
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if "_hold_once" in repr(task) or "loaded" in repr(task)]


def test_processes_are_told_with_the_model_they_run() -> None:
    workers = [ProcessStats("waiting", 1, 30, 10), ProcessStats("7c7a513e-3", 2, 50, 20)]
    replica = ReplicaStatus(
        replica_id="tiny-1", model="tiny", state="serving", devices=("cpu:0",), tier="device", size_bytes=1,
        loaded_bytes=1, bytes_per_second=0.0, running=0, waiting=0, keep_alive_seconds=30.0,
        expires_in_seconds=None, pid=2,
    )  # fmt: skip
    own, waiting, worker = process_statuses(workers, [replica])
    assert (own.role, own.pid) == ("daemon", os.getpid())
    assert (waiting.role, waiting.model) == ("waiting", None)
    assert (worker.model, worker.rss_bytes, worker.anonymous_bytes) == ("tiny", 50, 20)

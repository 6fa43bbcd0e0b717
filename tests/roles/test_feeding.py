"""From DRAM to devices: what a cap asks for, and what a load from there is told to have taken."""

from __future__ import annotations

import asyncio
import time

from sllmd.loader.settings import LoaderSettings
from sllmd.roles.residence import Residence
from sllmd.roles.settings import DeviceSettings
from tests.roles.conftest import MakeNode, Node

CAPPED = LoaderSettings(
    dram_budget="64MiB", slab_bytes=1 << 20, pin=False, dram_bandwidth_max_bytes=2_000_000
)


async def start(node: Node, model: str) -> tuple[float, Residence]:
    begun = time.monotonic()
    async with node.agent.hold(node.store.resolve(model)) as grant:
        return time.monotonic() - begun, grant.residence


async def test_a_start_takes_what_the_cap_asks_for_and_says_so(make_node: MakeNode) -> None:
    async with make_node(loader=CAPPED) as node:
        checkpoint = node.store.resolve("a")
        least = checkpoint.manifest.size_bytes / 2_000_000
        _, first = await start(node, "a")
        assert first.tier == "ssd"
        assert set(first.stages_seconds) == {"ssd→dram", "dram→device", "attach"}
        await node.agent.unload(checkpoint, keep_dram=True)
        assert node.tier.estimate_seconds(checkpoint) == least
        took, second = await start(node, "a")
        assert second.tier == "dram"
        assert took >= second.stages_seconds["dram→device"] >= 0.9 * least
        assert sum(second.stages_seconds.values()) <= took


async def test_without_a_cap_nothing_is_waited_for(make_node: MakeNode) -> None:
    async with make_node() as node:
        _, residence = await start(node, "a")
        assert set(residence.stages_seconds) == {"ssd→dram", "attach"}
        assert node.tier.estimate_seconds(node.store.resolve("a")) == 0


async def test_two_loads_share_a_device(make_node: MakeNode) -> None:
    async with make_node(loader=CAPPED, devices=DeviceSettings(replicas_max=2)) as node:
        both_bytes = sum(node.store.resolve(name).manifest.size_bytes for name in "ab")
        both = await asyncio.gather(start(node, "a"), start(node, "b"))
        assert max(took for took, _ in both) >= 0.9 * both_bytes / 2_000_000

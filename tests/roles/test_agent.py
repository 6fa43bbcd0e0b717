"""Replicas come, serve, rest and go; nobody waits for ever and nobody is forgotten."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from sllmd.core.errors import InsufficientCapacity, NodeDraining, QueueFull, StartupTimeout
from sllmd.engine.fake import FakeSettings
from sllmd.loader.settings import LoaderSettings
from sllmd.roles.admission import ReplicaState
from sllmd.roles.residence import Grant
from sllmd.roles.settings import DeviceSettings, ModelSettings, ServingSettings
from tests.roles.conftest import MakeNode, Node
from tests.waiting import eventually

ONE_SLOT = DeviceSettings(replicas_max=1)


async def hold_once(node: Node, model: str) -> Grant:
    async with node.agent.hold(node.store.resolve(model)) as grant:
        return grant


async def test_the_first_holder_starts_it_and_the_second_finds_it_serving(make_node: MakeNode) -> None:
    async with make_node() as node:
        checkpoint = node.store.resolve("a")
        async with node.agent.hold(checkpoint) as first:
            assert first.cold
            async with node.agent.hold(checkpoint) as second:
                assert not second.cold
                assert second.replica is first.replica
                assert second.residence.running == 2


async def test_many_waiters_share_one_start(make_node: MakeNode) -> None:
    async with make_node(batch_max=50) as node:
        checkpoint = node.store.resolve("a")

        async def hold() -> str:
            async with node.agent.hold(checkpoint) as grant:
                return grant.residence.replica_id

        replicas = await asyncio.gather(*(hold() for _ in range(50)))
        assert len(set(replicas)) == 1
        assert node.agent.waiting() == 0


async def test_an_idle_model_makes_room(make_node: MakeNode) -> None:
    async with make_node(devices=ONE_SLOT) as node:
        for name in ("a", "b", "a"):
            async with node.agent.hold(node.store.resolve(name)) as grant:
                assert grant.cold
        serving = [r for r in node.agent.residences() if r.state is ReplicaState.SERVING]
        assert [r.checkpoint.name for r in serving] == ["a"]


async def test_two_busy_models_on_one_device_take_turns(make_node: MakeNode) -> None:
    """A holds the device and keeps getting requests; B still gets its turn, and then A again."""
    async with make_node(devices=ONE_SLOT) as node:
        a, b = node.store.resolve("a"), node.store.resolve("b")
        order: list[str] = []

        async def hold(name: str, release: asyncio.Event) -> None:
            async with node.agent.hold(a if name == "a" else b):
                order.append(name)
                await release.wait()

        gates = [asyncio.Event() for _ in range(3)]
        async with asyncio.TaskGroup() as group:
            group.create_task(hold("a", gates[0]))
            await eventually(lambda: order)
            group.create_task(hold("b", gates[1]))
            residence = node.agent.residence(a)
            await eventually(lambda: residence.state is ReplicaState.CLOSING)
            group.create_task(hold("a", gates[2]))  # comes later: must not overtake b
            await eventually(lambda: node.agent.waiting() == 2)
            assert order == ["a"]
            for gate in gates:
                gate.set()
        assert order == ["a", "b", "a"]


async def test_a_young_replica_keeps_its_residency_then_closes(make_node: MakeNode) -> None:
    async with make_node(devices=ONE_SLOT, serving=ServingSettings(residency_min="50ms")) as node:
        a, b = node.store.resolve("a"), node.store.resolve("b")
        async with AsyncExitStack() as holding_a:
            grant = await holding_a.enter_async_context(node.agent.hold(a))

            async def hold_b() -> None:
                async with node.agent.hold(b):
                    pass

            waiting = asyncio.create_task(hold_b())
            await eventually(lambda: grant.residence.state is ReplicaState.CLOSING)
            loop_seconds = asyncio.get_running_loop().time()
            assert loop_seconds >= grant.residence.resident_since_seconds + 0.05
        await waiting


async def test_keep_alive_zero_goes_at_once_and_the_copy_in_dram_stays(make_node: MakeNode) -> None:
    async with make_node() as node:
        checkpoint = node.store.resolve("a")
        async with node.agent.hold(checkpoint, keep_alive_seconds=0) as grant:
            residence = grant.residence
        await residence.gone.wait()
        assert node.agent.residences() == ()
        assert node.agent.where(checkpoint) == "dram"


async def test_keep_alive_passes(make_node: MakeNode) -> None:
    async with make_node(models={"a": ModelSettings(keep_alive="20ms")}) as node:
        async with node.agent.hold(node.store.resolve("a")) as grant:
            residence = grant.residence
        assert residence.state is ReplicaState.SERVING
        await residence.gone.wait()


async def test_unload_lets_running_requests_finish_and_frees_everything(make_node: MakeNode) -> None:
    async with make_node() as node:
        checkpoint = node.store.resolve("a")
        async with AsyncExitStack() as holding:
            grant = await holding.enter_async_context(node.agent.hold(checkpoint))
            unloading = asyncio.create_task(node.agent.unload(checkpoint))
            await eventually(lambda: grant.residence.state is ReplicaState.CLOSING)
            assert not unloading.done()
        stopped, freed_bytes = await unloading
        assert stopped == 1
        assert freed_bytes > 0
        assert node.agent.where(checkpoint) == "ssd"
        assert node.tier.stats().used_bytes == 0


async def test_a_start_that_nobody_waits_for_is_cancelled(make_node: MakeNode) -> None:
    async with make_node() as node:
        checkpoint = node.store.resolve("a")

        async def hold() -> None:
            async with node.agent.hold(checkpoint):
                raise AssertionError("must not get there")

        waiting = asyncio.create_task(hold())
        await eventually(node.agent.residences)
        residence = node.agent.residences()[0]
        waiting.cancel()
        await residence.gone.wait()
        assert node.agent.waiting() == 0
        assert all(copy.loaded for copy in node.tier.stats().copies)


async def test_a_full_queue_says_when_to_come_back(make_node: MakeNode) -> None:
    serving = ServingSettings(queue_max_per_model=2, residency_min=0)
    async with make_node(serving=serving, batch_max=1) as node, AsyncExitStack() as holding:
        checkpoint = node.store.resolve("a")
        await holding.enter_async_context(node.agent.hold(checkpoint))
        queued = [asyncio.create_task(hold_once(node, "a")) for _ in range(2)]
        await eventually(lambda: node.agent.waiting() == 2)
        with pytest.raises(QueueFull) as refused:
            await holding.enter_async_context(node.agent.hold(checkpoint))
        assert refused.value.retry_after_seconds > 0
        await holding.aclose()
        await asyncio.gather(*queued)


async def test_no_more_run_than_there_are_rows_and_the_rest_is_seen_waiting(make_node: MakeNode) -> None:
    async with make_node(batch_max=1) as node, AsyncExitStack() as holding:
        grant = await holding.enter_async_context(node.agent.hold(node.store.resolve("a")))
        queued = asyncio.create_task(hold_once(node, "a"))
        await eventually(node.agent.waiting)
        assert grant.residence.running == 1
        await holding.aclose()
        assert not (await queued).cold


async def test_a_model_that_closed_for_somebody_who_left_serves_on(make_node: MakeNode) -> None:
    async with make_node(devices=ONE_SLOT) as node, AsyncExitStack() as holding:
        grant = await holding.enter_async_context(node.agent.hold(node.store.resolve("a")))
        asker = asyncio.create_task(hold_once(node, "b"))
        await eventually(lambda: grant.residence.state is ReplicaState.CLOSING)
        asker.cancel()
        await eventually(lambda: grant.residence.state is ReplicaState.SERVING)
        assert not (await hold_once(node, "a")).cold


async def test_a_load_into_dram_is_waited_for_not_refused(make_node: MakeNode) -> None:
    """Memory for one model only, and a lift holds it: the other model waits and then starts."""
    needed_bytes = 7 * 65536  # what tiny's 458,752 bytes take in slabs of 64 KiB
    loader = LoaderSettings(
        dram_budget=str(needed_bytes + 65536), slab_bytes=65536, pin=False, headroom_bytes=0
    )
    async with make_node(loader=loader) as node:
        async with node.agent.lift(node.store.resolve("a")) as lease:
            await lease.loaded()
            waiting = asyncio.create_task(hold_once(node, "b"))
            await eventually(node.agent.waiting)
        assert (await waiting).cold


async def test_a_request_s_keep_alive_does_not_outlast_the_next_request(make_node: MakeNode) -> None:
    async with make_node(models={"a": ModelSettings(keep_alive="20ms")}) as node:
        checkpoint = node.store.resolve("a")
        async with node.agent.hold(checkpoint, keep_alive_seconds=float("inf")) as grant:
            residence = grant.residence
        await hold_once(node, "a")
        await residence.gone.wait()


async def test_unload_of_a_starting_model_lets_who_waits_be_served_first(make_node: MakeNode) -> None:
    async with make_node() as node:
        checkpoint = node.store.resolve("a")
        waiting = asyncio.create_task(hold_once(node, "a"))
        await eventually(node.agent.residences)
        stopped, _ = await node.agent.unload(checkpoint)
        assert stopped == 1
        assert (await waiting).cold
        assert node.agent.residences() == ()


async def test_waiting_too_long_is_a_timeout_with_an_estimate(make_node: MakeNode) -> None:
    async with make_node(devices=ONE_SLOT) as node, AsyncExitStack() as holding:
        await holding.enter_async_context(node.agent.hold(node.store.resolve("a")))
        node.agent._settings = ServingSettings(queue_timeout="30ms", residency_min=60)
        with pytest.raises(StartupTimeout):
            await holding.enter_async_context(node.agent.hold(node.store.resolve("b")))
        assert node.agent.waiting() == 0


async def test_a_start_that_is_slower_than_anybody_may_wait_comes_about(make_node: MakeNode) -> None:
    serving = ServingSettings(queue_timeout="30ms", residency_min=0)
    async with make_node(fake=FakeSettings(build_seconds=0.5), serving=serving) as node:
        checkpoint = node.store.resolve("a")
        with pytest.raises(StartupTimeout):
            async with node.agent.hold(checkpoint):
                pass
        residence = node.agent.residence(checkpoint)
        assert residence is not None
        await eventually(lambda: residence.state is ReplicaState.SERVING)
        async with node.agent.hold(checkpoint) as grant:
            assert not grant.cold


async def test_a_model_over_the_budget_is_refused_by_name(make_node: MakeNode) -> None:
    loader = LoaderSettings(dram_budget="128KiB", slab_bytes=4096, pin=False, headroom_bytes=0)
    async with make_node(loader=loader) as node:
        with pytest.raises(InsufficientCapacity, match="DRAM"):
            async with node.agent.hold(node.store.resolve("a")):
                pass


async def test_draining_waits_for_what_runs_and_takes_nothing_new(make_node: MakeNode) -> None:
    async with make_node() as node:
        async with AsyncExitStack() as holding:
            await holding.enter_async_context(node.agent.hold(node.store.resolve("a")))
            draining = asyncio.create_task(node.agent.drain(60))
            await eventually(lambda: node.agent.draining)
            with pytest.raises(NodeDraining):
                async with node.agent.hold(node.store.resolve("b")):
                    pass
            assert not draining.done()
            assert node.agent.drained_since_seconds is None
        assert await draining == 0
        since_seconds = node.agent.drained_since_seconds
        assert since_seconds is not None
        node.agent.stop_taking("asked again")
        assert node.agent.drained_since_seconds == since_seconds
        node.agent.resume()
        assert node.agent.drained_since_seconds is None

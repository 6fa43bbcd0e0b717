"""Idle replicas sleep before they end, keys take turns at the queue, and nothing thrashes."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from sllmd.core.errors import SllmdError
from sllmd.engine.fake import FakeSettings
from sllmd.loader.settings import LoaderSettings
from sllmd.roles.admission import ReplicaState
from sllmd.roles.residence import Residence
from sllmd.roles.settings import DeviceSettings, ModelSettings, ServingSettings
from tests.roles.conftest import MakeNode, Node
from tests.waiting import eventually

ONE_SLOT = DeviceSettings(replicas_max=1)


async def use(node: Node, model: str, key: str = "") -> Residence:
    async with node.agent.hold(node.store.resolve(model), key=key) as grant:
        return grant.residence


async def asleep(residence: Residence) -> None:
    await eventually(lambda: residence.state is ReplicaState.ASLEEP, "it sleeps")


async def test_an_idle_replica_sleeps_is_woken_and_ends_at_last(make_node: MakeNode) -> None:
    async with make_node(models={"a": ModelSettings(keep_alive="50ms")}) as node:
        residence = await use(node, "a")
        replica = residence.replica
        await asleep(residence)
        (status,) = node.operator.status().replicas
        assert (status.state, status.devices, status.tier) == ("asleep", (), "dram")
        async with node.agent.hold(node.store.resolve("a")) as grant:
            assert grant.cold
            assert (grant.replica, grant.residence) == (replica, residence)
            assert list(residence.stages_seconds) == ["wake"]
        await residence.gone.wait()
        assert node.agent.where(node.store.resolve("a")) == "dram"


async def test_one_that_makes_room_sleeps_and_takes_its_turn_again(make_node: MakeNode) -> None:
    async with make_node(devices=ONE_SLOT) as node:
        first, other = await use(node, "a"), await use(node, "b")
        await asleep(first)
        assert await use(node, "a") is first
        await asleep(other)
        assert first.state is ReplicaState.SERVING


@pytest.mark.parametrize("wanted_by", ["a load into DRAM", "a replica"])
async def test_one_that_sleeps_ends_where_memory_is_wanted(make_node: MakeNode, wanted_by: str) -> None:
    small = LoaderSettings(dram_budget="1MiB", slab_bytes=1 << 20, pin=False)
    async with make_node(
        devices=ONE_SLOT, loader=small, models={"a": ModelSettings(keep_alive="10ms")}
    ) as node:
        needed = node.tier.slab_bytes_needed(node.store.resolve("a"))
        assert node.tier.budget_bytes < 2 * needed, "one fits, two do not"
        residence = await use(node, "a")
        residence.keep_alive_seconds = float("inf")
        await asleep(residence)
        if wanted_by == "a replica":
            assert (await use(node, "b")).state is ReplicaState.SERVING
        else:
            async with node.agent.lift(node.store.resolve("b")) as lease:
                await lease.loaded()
        assert residence.gone.is_set()


@pytest.mark.parametrize("asleep_max", [0, 1])
async def test_no_more_sleep_than_may(make_node: MakeNode, asleep_max: int) -> None:
    serving = ServingSettings(residency_min=0, asleep_max=asleep_max)
    async with make_node(devices=ONE_SLOT, serving=serving) as node:
        for name in ("a", "b", "a", "b"):
            await use(node, name)
            states = [each.state for each in node.agent.residences()]
            assert sum(state in (ReplicaState.DOZING, ReplicaState.ASLEEP) for state in states) <= asleep_max
            assert ReplicaState.SERVING in states


async def test_an_operator_unloads_one_that_sleeps(make_node: MakeNode) -> None:
    async with make_node(models={"a": ModelSettings(keep_alive="10ms")}) as node:
        residence = await use(node, "a")
        residence.keep_alive_seconds = float("inf")
        await asleep(residence)
        stopped, freed_bytes = await node.agent.unload(node.store.resolve("a"))
        assert stopped == 1
        assert freed_bytes > 0


async def test_keep_alive_is_some_loads_unless_somebody_says(make_node: MakeNode) -> None:
    slow = LoaderSettings(
        dram_budget="64MiB", slab_bytes=1 << 20, pin=False, disk_bandwidth_guess_bytes=20_000
    )
    said = {"b": ModelSettings(keep_alive=7)}
    async with make_node(loader=slow, models=said) as node:
        a, b = node.store.resolve("a"), node.store.resolve("b")
        size_bytes = a.manifest.size_bytes
        loads = size_bytes / 20_000 + 0.3
        assert node.agent.keep_alive_seconds(a) == pytest.approx(min(max(8 * loads, 30), 600))
        assert node.agent.keep_alive_seconds(b) == 7
    async with make_node(serving=ServingSettings(keep_alive=-1)) as node:
        assert node.agent.keep_alive_seconds(node.store.resolve("a")) == float("inf")


async def test_many_requests_of_a_key_do_not_keep_another_waiting(make_node: MakeNode) -> None:
    serving = ServingSettings(residency_min=0, queue_max_per_model=500)
    async with make_node(batch_max=1, serving=serving) as node:
        checkpoint, served, small = node.store.resolve("a"), count(), []
        gate = asyncio.Event()

        async def ask(key: str) -> None:
            async with node.agent.hold(checkpoint, key=key):
                await gate.wait()
                place = next(served)
                if key == "small":
                    small.append(place)

        async with asyncio.TaskGroup() as group:
            for _ in range(300):
                group.create_task(ask("greedy"))
            await eventually(lambda: node.agent.waiting() == 299, "they wait")
            group.create_task(ask("small"))
            await eventually(lambda: node.agent.waiting() == 300, "the other one, too")
            gate.set()
        assert small[0] <= 3, "the one that ran already, and two at most"


@pytest.mark.slow
@pytest.mark.parametrize("in_process", [True, False], ids=["in this process", "in workers"])
async def test_two_hot_models_on_one_device_batch_their_queues(make_node: MakeNode, in_process: bool) -> None:
    """Two crowds that never stop asking: nobody fails, both are served, and each stay serves many."""
    fake = FakeSettings(build_seconds=0.1)
    serving = ServingSettings(residency_min="200ms")
    async with make_node(
        devices=ONE_SLOT, fake=fake, serving=serving, batch_max=4, in_process=in_process
    ) as node:
        served, starts, failed = {"a": 0, "b": 0}, 0, []

        def observe(_residence: Residence, change: str, _reason: str | None) -> None:
            nonlocal starts
            starts += change == "starting"

        node.agent.observers.append(observe)
        enough = asyncio.Event()

        async def ask(model: str) -> None:
            while not enough.is_set():
                try:
                    async with node.agent.hold(node.store.resolve(model), key=model):
                        await asyncio.sleep(0.005)
                except SllmdError as error:
                    failed.append(error)
                    return
                served[model] += 1
                if starts >= 8:
                    enough.set()

        await asyncio.gather(*(ask(model) for model in ("a", "b") for _ in range(12)))
        assert not failed
        assert min(served.values()) >= 3 * 12
        assert sum(served.values()) >= 10 * starts

"""Orders of a leader: never one of an older epoch, never one twice, and none that the node cannot hold."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from sllmd.core.errors import NotHere, StoreError
from sllmd.core.ids import Digest, NodeId
from sllmd.engine.fake import FakeSettings
from sllmd.loader.settings import LoaderSettings
from sllmd.roles.lifts import Lifts
from sllmd.roles.orders import METHOD, Fence, Order, Orders, Verb, Verdict, pack_order, unpack_answer
from sllmd.roles.settings import DeviceSettings, ServingSettings
from tests.roles.conftest import MakeNode, Node, request
from tests.roles.rpc import Network, speaking
from tests.waiting import eventually

CLUSTER = "c1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "epoch.json"


def orders_of(node: Node, path: Path) -> Orders:
    orders = Orders(node.agent, node.library, Lifts(node.agent, node.tier))
    orders.open(Fence(path, CLUSTER))
    return orders


def order(node: Node, verb: Verb = Verb.LOAD, model: str = "a", **changes: object) -> Order:
    checkpoint = node.store.resolve(model)
    made = Order(5, "o1", verb, checkpoint.name, checkpoint.manifest.digest, 1)
    return replace(made, **changes)  # type: ignore[arg-type]


async def test_a_load_and_an_unload_are_carried_out(make_node: MakeNode, path: Path) -> None:
    async with make_node() as node:
        orders = orders_of(node, path)
        assert (await orders.take(order(node))).verdict is Verdict.ACCEPTED
        await eventually(lambda: [each.state for each in node.agent.residences()] == ["serving"])
        unload = order(node, Verb.UNLOAD, order_id="o2", revision=2)
        assert (await orders.take(unload)).verdict is Verdict.ACCEPTED
        await eventually(lambda: node.agent.residences() == ())
        assert node.agent.where(node.store.resolve("a")) == "dram"
        await orders.close()


async def test_a_load_goes_on_for_those_who_come_for_it(
    make_node: MakeNode, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sllmd.roles.orders.CLAIM_SECONDS", 0.05)
    async with make_node(fake=FakeSettings(build_seconds=600)) as node:
        orders = orders_of(node, path)
        await orders.take(order(node))
        await eventually(lambda: [each.state for each in node.agent.residences()] == ["starting"])
        assert node.agent.waiting() == 0
        await eventually(lambda: node.agent.residences() == ())  # nobody came

        await orders.take(order(node, order_id="o2", stays=True))
        await orders.take(order(node, model="b", order_id="o3"))
        await eventually(lambda: len(node.agent.residences()) == 2)
        await eventually(lambda: [each.checkpoint.name for each in node.agent.residences()] == ["a"])
        await orders.close()


async def test_a_lift_is_a_copy_in_memory_and_no_replica(make_node: MakeNode, path: Path) -> None:
    async with make_node() as node:
        orders = orders_of(node, path)
        lift = order(node, Verb.LIFT, revision=0)
        assert (await orders.take(lift)).verdict is Verdict.ACCEPTED
        checkpoint = node.store.resolve("a")
        await eventually(lambda: node.agent.where(checkpoint) == "dram")
        assert node.agent.residences() == ()
        await eventually(lambda: not any(copy.leases for copy in node.tier.stats().copies))
        answer = await orders.take(replace(lift, order_id="o2"))
        assert (answer.verdict, answer.reason) == (Verdict.CONFLICT, "it is not on this node's SSD alone")
        await node.operator.unload("a")
        answer = await orders.take(replace(lift, order_id="o3"))
        assert (answer.verdict, answer.reason) == (Verdict.CONFLICT, "it was unloaded on purpose")
        async with node.agent.hold(checkpoint):
            pass
        assert not node.agent.put_down
        await orders.close()


async def test_a_lift_takes_the_place_of_named_copies_alone(make_node: MakeNode, path: Path) -> None:
    one_fits = LoaderSettings(dram_budget="1MiB", slab_bytes=1 << 20, pin=False, headroom_bytes=0)
    async with make_node(loader=one_fits) as node:
        orders = orders_of(node, path)
        a, b = node.store.resolve("a"), node.store.resolve("b")
        async with node.agent.lift(a) as lease:
            await lease.loaded()
        lift = order(node, Verb.LIFT, "b", revision=0)
        answer = await orders.take(lift)
        assert (answer.verdict, answer.reason) == (Verdict.CONFLICT, "there is no room for it in memory")
        going = (a.manifest.digest,)
        assert (await orders.take(replace(lift, order_id="o2", going=going))).verdict is Verdict.ACCEPTED
        await eventually(lambda: node.agent.where(b) == "dram")
        assert node.agent.where(a) == "ssd"
        # It goes for whoever needs its memory.
        async with node.agent.hold(a):
            assert node.agent.where(b) == "ssd"
        await orders.close()


async def test_who_needs_a_replica_ends_the_lift_of_another_model(make_node: MakeNode, path: Path) -> None:
    slow = LoaderSettings(
        dram_budget="64MiB", slab_bytes=1 << 20, pin=False, headroom_bytes=0, disk_bandwidth_max_bytes=20_000
    )
    async with make_node(loader=slow) as node:
        orders = orders_of(node, path)
        await orders.take(order(node, Verb.LIFT, "b", revision=0))
        await eventually(lambda: any(copy.leases for copy in node.tier.stats().copies))
        waits = asyncio.create_task(_held(node, "a"))
        await eventually(node.agent.residences)
        digest = node.store.resolve("b").manifest.digest
        await eventually(lambda: digest not in {copy.digest for copy in node.tier.stats().copies})
        waits.cancel()
        await orders.close()


async def _held(node: Node, model: str) -> None:
    async with node.agent.hold(node.store.resolve(model)):
        pass


async def test_nothing_is_fetched_to_unload_what_is_not_here(make_node: MakeNode, path: Path) -> None:
    async with make_node() as node:
        orders = orders_of(node, path)
        nowhere = order(node, Verb.UNLOAD, digest=Digest("0" * 32))
        assert (await orders.take(nowhere)).verdict is Verdict.ACCEPTED
        with pytest.raises(NotHere):
            await orders.take(replace(nowhere, verb=Verb.LOAD, order_id="o2"))
        await orders.close()


async def test_an_older_epoch_is_refused_also_after_a_restart(make_node: MakeNode, path: Path) -> None:
    async with make_node() as node:
        orders = orders_of(node, path)
        await orders.take(order(node, epoch=7))
        assert Fence(path, CLUSTER).epoch == 7
        for again in (orders, orders_of(node, path)):
            answer = await again.take(order(node, epoch=6, order_id="late"))
            assert (answer.verdict, answer.epoch) == (Verdict.STALE_EPOCH, 7)
        await orders.close()


async def test_an_order_sent_twice_is_carried_out_once(make_node: MakeNode, path: Path) -> None:
    async with make_node() as node:
        orders = orders_of(node, path)
        first = await orders.take(order(node))
        await eventually(lambda: [each.state for each in node.agent.residences()] == ["serving"])
        await node.agent.unload(node.store.resolve("a"))
        assert await orders.take(order(node)) == first
        assert node.agent.residences() == ()
        await orders.close()


async def test_an_intent_that_was_overtaken_is_refused(make_node: MakeNode, path: Path) -> None:
    async with make_node() as node:
        orders = orders_of(node, path)
        await orders.take(order(node, Verb.UNLOAD, revision=9))
        late = await orders.take(order(node, order_id="o2", revision=8))
        assert late.verdict is Verdict.STALE_REVISION
        assert node.agent.residences() == ()
        await orders.close()


async def test_the_node_decides_about_its_devices(make_node: MakeNode, path: Path) -> None:
    one = DeviceSettings(replicas_max=1)
    serving = ServingSettings(residency_min=0)
    slow = FakeSettings(token_seconds=0.05)
    async with make_node(devices=one, serving=serving, fake=slow) as node:
        orders = orders_of(node, path)
        async with node.router.generate(request("a", max_tokens=1000)) as generation:
            await anext(aiter(generation))
            answer = await orders.take(order(node, model="b"))
            assert answer.verdict is Verdict.CONFLICT
            assert answer.reason
        assert (await orders.take(order(node, model="b", order_id="o2"))).verdict is Verdict.ACCEPTED
        await orders.close()


async def test_another_clusters_epoch_means_nothing_here(path: Path) -> None:
    assert await Fence(path, "old").admit(99)
    fence = Fence(path, CLUSTER)
    assert fence.epoch == 0
    assert await fence.admit(1)
    assert Fence(path, CLUSTER).epoch == 1


def test_an_unreadable_fence_stops_rather_than_forgets(path: Path) -> None:
    path.write_text("{}")
    with pytest.raises(StoreError):
        Fence(path, CLUSTER)


async def test_an_epoch_that_cannot_be_remembered_is_not_obeyed(make_node: MakeNode, path: Path) -> None:
    async with make_node() as node:
        orders = orders_of(node, path / "no" / "such" / "directory")
        with pytest.raises(StoreError):
            await orders.take(order(node))
        assert node.agent.residences() == ()


async def test_orders_come_over_rpc_and_not_before_the_node_has_joined(
    make_node: MakeNode, path: Path
) -> None:
    network = Network()
    async with make_node() as node, speaking(network, "a") as leader, speaking(network, "b") as follower:
        orders = Orders(node.agent, node.library, Lifts(node.agent, node.tier))
        orders.offer(follower.methods)
        connection = await leader.connection(NodeId("b"))
        packed = pack_order(order(node))
        with pytest.raises(NotHere):
            await connection.call(METHOD, packed)
        orders.open(Fence(path, CLUSTER))
        assert unpack_answer(await connection.call(METHOD, packed)).verdict is Verdict.ACCEPTED
        await orders.close()

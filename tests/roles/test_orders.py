"""Orders of a leader: never one of an older epoch, never one twice, and none that the node cannot hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sllmd.core.errors import NotHere, StoreError
from sllmd.core.ids import Digest, NodeId
from sllmd.engine.fake import FakeSettings
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
    orders = Orders(node.agent, node.library)
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
        orders = Orders(node.agent, node.library)
        orders.offer(follower.methods)
        connection = await leader.connection(NodeId("b"))
        packed = pack_order(order(node))
        with pytest.raises(NotHere):
            await connection.call(METHOD, packed)
        orders.open(Fence(path, CLUSTER))
        assert unpack_answer(await connection.call(METHOD, packed)).verdict is Verdict.ACCEPTED
        await orders.close()

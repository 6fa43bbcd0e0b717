"""Never two that lead, by wall clock; and nobody leads on a lease that may have run out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from sllmd.cluster.catalogue.commands import EpochBegin, SettingPut
from sllmd.cluster.catalogue.results import Done
from sllmd.cluster.control import ControlStore
from sllmd.cluster.etcd.control import EtcdControl
from sllmd.core.errors import OutcomeUnknown
from tests.cluster.etcd_process import EtcdCluster
from tests.cluster.stores import LEASE_SECONDS, EtcdStores, etcd_stores, leader_of
from tests.waiting import eventually

pytestmark = pytest.mark.slow


@asynccontextmanager
async def watched(nodes: list[EtcdControl]) -> AsyncIterator[list[int]]:
    """Looks without a pause at who leads; fails if two ever do at once. Collects the epochs."""
    epochs: list[int] = []

    async def look() -> None:
        while True:
            leading = [node.leadership() for node in nodes if node.leadership().is_me]
            assert len(leading) <= 1
            if leading and leading[0].epoch not in epochs:
                epochs.append(leading[0].epoch)
            await asyncio.sleep(0.001)

    looking = asyncio.create_task(look())
    try:
        yield epochs
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        if not looking.cancelled():
            looking.result()


async def seen_leader(stores: EtcdStores, epochs: list[int]) -> ControlStore:
    """Who leads, once ``watched`` saw it, too: a term that is given away at once may fall between looks."""
    leader = await leader_of(stores.nodes)
    await eventually(lambda: leader.leadership().epoch in epochs, "the new term is noted")
    return leader


def all_nodes(stores: EtcdStores) -> list[EtcdControl]:
    return [node for node in stores.nodes if isinstance(node, EtcdControl)]


async def cut(stores: EtcdStores, node: ControlStore) -> None:
    for cable in stores.cables[node]:
        await cable.pull_out()


async def mend(stores: EtcdStores, node: ControlStore) -> None:
    for cable in stores.cables[node]:
        await cable.plug_in()


async def test_of_two_that_contend_one_leads_at_a_time(etcd: EtcdCluster) -> None:
    async with etcd_stores(etcd, 2) as stores, watched(all_nodes(stores)) as epochs:
        for _ in range(3):
            leader = await seen_leader(stores, epochs)
            assert await leader.hand_over()
        for _ in range(2):
            leader = await seen_leader(stores, epochs)
            other = next(node for node in stores.nodes if node is not leader)
            await cut(stores, leader)
            await eventually(lambda leader=leader: not leader.leadership().is_me)
            assert await seen_leader(stores, epochs) is other
            await mend(stores, leader)
            await eventually(
                lambda leader=leader, other=other: leader.leadership().epoch == other.leadership().epoch
            )
        assert epochs == sorted(epochs)
        assert len(epochs) == 6


async def test_a_leader_whose_messages_are_held_up_stops_before_another_begins(etcd: EtcdCluster) -> None:
    async with etcd_stores(etcd, 2) as stores, watched(all_nodes(stores)) as epochs:
        leader = await seen_leader(stores, epochs)
        other = next(node for node in stores.nodes if node is not leader)
        stale = leader.leadership().epoch
        for cable in stores.cables[leader]:
            cable.block()
        order = asyncio.create_task(leader.propose(SettingPut("late", b"", None), epoch=stale))
        await eventually(lambda: other.leadership().is_me)
        assert await seen_leader(stores, epochs) is other
        await other.propose(SettingPut("x", b"", None), epoch=other.leadership().epoch)
        for cable in stores.cables[leader]:
            cable.unblock()
        await asyncio.gather(order, return_exceptions=True)
        assert (await other.read()).settings.get("late") is None, "an order of an older epoch took effect"
        assert len(epochs) == 2


async def test_etcd_stopped_for_longer_than_the_lease(etcd: EtcdCluster) -> None:
    async with etcd_stores(etcd, 2, propose_seconds=10.0) as stores, watched(all_nodes(stores)) as epochs:
        leader = await seen_leader(stores, epochs)
        await leader.propose(SettingPut("before", b"", None))
        etcd.stop()
        try:
            await asyncio.sleep(LEASE_SECONDS)  # its own timer is due before: timers go off in order
            assert not leader.leadership().is_me
            with pytest.raises(OutcomeUnknown):
                await leader.propose(SettingPut("meanwhile", b"", None))
            for node in stores.nodes:
                assert not node.leadership().is_me
                assert node.view().catalogue.settings.get("before") is not None
                assert node.view().age_seconds > LEASE_SECONDS
        finally:
            etcd.resume()
        await seen_leader(stores, epochs)
        assert isinstance(await leader.propose(SettingPut("after", b"", None)), Done)
        assert len(epochs) == 2


async def test_a_leader_that_is_killed_with_etcd_comes_back_by_itself(etcd: EtcdCluster) -> None:
    async with etcd_stores(etcd, 1) as stores:
        (node,) = stores.nodes
        before = (await leader_of([node])).leadership().epoch
        etcd.members[0].kill()
        await eventually(lambda: not node.leadership().is_me)
        await asyncio.to_thread(etcd.members[0].start)
        await eventually(lambda: node.leadership().is_me)
        assert node.leadership().epoch > before
        assert node.view().catalogue.epoch == node.leadership().epoch


async def test_hand_over_with_nobody_there_takes_the_seat_back(etcd: EtcdCluster) -> None:
    async with etcd_stores(etcd, 1, hand_over_seconds=0.2) as stores:
        leader = await leader_of(stores.nodes)
        before = leader.leadership().epoch
        assert not await leader.hand_over()
        await leader_of(stores.nodes)
        assert leader.leadership().epoch > before


async def test_close_gives_the_seat_back_at_once(etcd: EtcdCluster) -> None:
    async with etcd_stores(etcd, 2, lease_seconds=60.0) as stores:
        leader = await leader_of(stores.nodes)
        other = next(node for node in stores.nodes if node is not leader)
        await leader.close()
        await eventually(lambda: other.leadership().is_me, "the other leads", seconds=40)


async def test_an_incarnation_puts_epochs_above_all_before(etcd: EtcdCluster) -> None:
    async with etcd_stores(etcd, 1, incarnation=2) as stores:
        leader = await leader_of(stores.nodes)
        assert leader.leadership().epoch >> 48 == 2
        assert leader.view().catalogue.epoch == leader.leadership().epoch


async def test_a_node_whose_epochs_would_fall_does_not_lead(etcd: EtcdCluster) -> None:
    async with etcd_stores(etcd, 0, hand_over_seconds=0.2) as stores:
        behind = await stores.add()
        await leader_of([behind])
        await behind.propose(EpochBegin(1 << 60))
        with capture_logs() as logs:
            async with watched([behind]) as epochs:
                assert await behind.hand_over() is False
                epochs.clear()
                await eventually(lambda: sum("an epoch was refused" in line["event"] for line in logs) >= 2)
        assert epochs == []  # it stood twice, and led at no time

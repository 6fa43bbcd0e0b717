"""Berths over rpc: a lease that lives as long as its stream, and orders that must continue what was told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from sllmd.core.errors import NotHere, PeerUnreachable, ProtocolError
from sllmd.core.ids import GenerationId, NodeId, RequestId
from sllmd.engine.fake import FakeSettings
from sllmd.engine.protocol import GenerationState, Sampling, TokenEvent
from sllmd.roles.berths import COMMIT, WARM, Berths
from sllmd.roles.place import Here
from sllmd.roles.relay import BerthThere, Relays
from sllmd.roles.transcript import pack_ids
from sllmd.roles.work import Work
from tests.roles.conftest import Node
from tests.roles.rpc import Network, Speaker, speaking
from tests.waiting import eventually

FAR = NodeId("far")


@dataclass
class Two:
    node: Node
    near: Speaker
    far: Speaker
    berths: Berths
    relays: Relays

    def work(self, *output_ids: int) -> Work:
        checkpoint = self.node.store.resolve("a")
        state = GenerationState(
            GenerationId("g"), [5, 6, 7], Sampling(seed=1, max_tokens=9), list(output_ids)
        )
        return Work(RequestId("r"), checkpoint.name, checkpoint.manifest.digest, state)

    async def open(self, *output_ids: int) -> BerthThere:
        return await BerthThere.open(FAR, self.relays, self.work(*output_ids))

    async def still(self) -> None:
        await eventually(lambda: self.berths.count == 0)
        (residence,) = self.node.agent.residences()
        await eventually(lambda: residence.running == 0)
        assert self.relays.count == 0


@pytest.fixture
def make_two(make_node):
    @asynccontextmanager
    async def make(**changes: object) -> AsyncIterator[Two]:
        network = Network()
        async with (
            make_node(**changes) as node,
            speaking(network, "near") as near,
            speaking(network, "far") as far,
        ):
            berths = Berths(Here(node.agent, node.library.obtain_exactly, FAR))
            berths.offer(far.methods)
            yield Two(node, near, far, berths, Relays(near.connection, start_timeout_seconds=60.0))

    return make


async def test_a_berth_holds_a_replica_warms_it_and_runs_from_what_it_was_told(make_two) -> None:
    async with make_two() as two:
        berth = await two.open()
        (residence,) = two.node.agent.residences()
        assert (berth.granted.node, residence.running) == (FAR, 1)
        run = [event async for event in residence.replica.generate(two.work().state)]
        tokens = [event for event in run if isinstance(event, TokenEvent)]
        ids = [event.token_id for event in tokens]
        await berth.warm(ids[:3])
        warm = await residence.replica.stats()
        events = [event async for event in berth.commit(ids[:5])]
        assert [event.token_id for event in events if isinstance(event, TokenEvent)] == ids[5:]
        after = await residence.replica.stats()
        assert after.prefill_tokens - warm.prefill_tokens == 2  # the gap alone was computed
        await berth.aclose()
        await two.still()


async def test_a_berth_that_is_left_lets_the_replica_go(make_two) -> None:
    async with make_two() as two:
        berth = await two.open()
        assert two.berths.count == 1
        await berth.aclose()
        await two.still()


async def test_a_broken_connection_lets_the_replica_go(make_two) -> None:
    async with make_two(fake=FakeSettings(token_seconds=0.01)) as two:
        berth = await two.open()
        await two.near.peers.close()
        await eventually(lambda: two.berths.count == 0)
        with pytest.raises(PeerUnreachable):
            await berth.warm([1])
        with pytest.raises(PeerUnreachable):
            [event async for event in berth.commit([1])]
        await berth.aclose()
        await two.still()


async def test_tokens_that_do_not_follow_are_refused_and_end_the_berth(make_two) -> None:
    async with make_two() as two:
        berth = await two.open(40)
        connection = await two.near.connection(FAR)
        for start in (0, 2):
            with pytest.raises(ProtocolError, match="after 1 of them"):
                await connection.call(WARM, (berth._name, start, pack_ids([1])))
        await connection.call(WARM, (berth._name, 1, pack_ids([41])))
        berth._told = 7
        with pytest.raises(ProtocolError):
            [event async for event in berth.commit([1] * 8)]
        await berth.aclose()
        await two.still()


async def test_orders_to_no_berth_are_refused_or_dropped(make_two) -> None:
    async with make_two() as two:
        connection = await two.near.connection(FAR)
        with pytest.raises(NotHere):
            await connection.call(WARM, ("nothing", 0, b""))
        with pytest.raises(ProtocolError):
            await connection.call(WARM, ("nothing", 0))
        assert connection.note(COMMIT, ("nothing", 0, b""))
        assert connection.note(COMMIT, b"nothing at all")
        berth = await two.open()
        await berth.aclose()
        await two.still()

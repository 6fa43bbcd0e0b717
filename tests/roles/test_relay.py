"""A generation on another node: the same text, one hop, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from sllmd.core.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    NodeDraining,
    NotHere,
    PeerUnreachable,
    SllmdError,
    WorkerLost,
)
from sllmd.core.ids import NodeId
from sllmd.engine.fake import FakeSettings
from sllmd.engine.protocol import Sampling
from sllmd.migration.settings import MigrationSettings
from sllmd.roles.generation import Delta
from sllmd.roles.place import Here, Place
from sllmd.roles.relay import Relays, serve_generations
from sllmd.roles.settings import DeviceSettings
from sllmd.roles.work import Work
from sllmd.wire.rpc.peers import Address
from sllmd.wire.rpc.settings import RpcSettings
from tests.roles.conftest import MakeNode, Node, request
from tests.roles.rpc import Network, Speaker, speaking
from tests.waiting import eventually

STEADY = FakeSettings(token_seconds=0.005)
NOWHERE = Address("127.0.0.1", 1)


class Told:
    """Places as a test says, and what was said of them."""

    def __init__(self, *places: Place) -> None:
        self.places = places
        self.failures: list[tuple[NodeId, str]] = []

    def choose(self, work: Work) -> Iterable[Place]:
        return self.places

    def at(self, node: NodeId) -> Place:
        return next(place for place in self.places if place.node == node)

    def failed(self, place: Place, work: Work, error: SllmdError) -> None:
        self.failures.append((place.node, error.code))


@dataclass
class Pair:
    """Router ``near`` and replica ``far``."""

    near: Node
    far: Node
    relays: Relays
    far_speaker: Speaker

    def route(self, *names: str) -> Told:
        told = Told(*(self.relays.there(NodeId(name)) for name in names))
        self.near.router.places = told
        return told


MakePair = Callable[..., "AsyncIterator[Pair]"]


@pytest.fixture
def make_pair(make_node: MakeNode):
    @asynccontextmanager
    async def make(
        *, start_timeout_seconds: float = 60.0, window_bytes: int = 65536, **far: object
    ) -> AsyncIterator[Pair]:
        network = Network(settings=RpcSettings(redial_seconds=0.01, stream_window_bytes=window_bytes))
        async with (
            make_node() as near,
            make_node(**far) as other,
            speaking(network, "near") as speaker,
            speaking(network, "far") as far_speaker,
        ):
            here = Here(other.agent, other.library.obtain_exactly, NodeId("far"))
            serve_generations(far_speaker.methods, here)
            relays = Relays(speaker.connection, start_timeout_seconds=start_timeout_seconds)
            pair = Pair(near, other, relays, far_speaker)
            pair.route("far")
            yield pair

    return make


async def collect(node: Node, **changes: object) -> tuple[list[Delta], object]:
    async with node.router.generate(request(**changes)) as generation:  # type: ignore[arg-type]
        return [delta async for delta in generation], generation


async def test_text_logprobs_and_counts_are_those_of_a_local_generation(make_pair, make_node) -> None:
    sampling = Sampling(seed=1, max_tokens=20, temperature=0.0, logprobs=2, prompt_logprobs=1)
    async with make_pair() as pair, make_node() as alone:
        for changes in ({"sampling": sampling}, {"max_tokens": 40, "stop": ("a", "e")}, {"max_tokens": 1}):
            there, far = await collect(pair.near, **changes)
            here, near = await collect(alone, **changes)
            assert there == here
            assert far.usage == near.usage  # type: ignore[attr-defined]
            assert far.prompt_logprobs == near.prompt_logprobs  # type: ignore[attr-defined]
        assert pair.near.agent.residences() == ()
        assert pair.relays.count == 0


async def test_timing_tells_of_the_other_node(make_pair) -> None:
    async with make_pair() as pair:
        for cold in (True, False):
            _, generation = await collect(pair.near)
            timing = generation.timing
            assert (timing.node, timing.cold) == ("far", cold)
            assert timing.tier == ("ssd" if cold else "device")
            assert (timing.load_ms > 0) is cold
            assert set(timing.stages) == ({"ssd→dram", "attach"} if cold else set())


async def test_several_at_once_are_one_batch_over_there(make_pair) -> None:
    async with make_pair(fake=STEADY, batch_max=16) as pair:
        answers = await asyncio.gather(*(collect(pair.near, max_tokens=30) for _ in range(16)))
        assert all(answer[0] == answers[0][0] for answer in answers)
        (residence,) = pair.far.agent.residences()
        assert (await residence.replica.stats()).steps < 16 * 30 / 4


async def test_leaving_ends_the_row_over_there(make_pair) -> None:
    async with make_pair(fake=STEADY) as pair:
        async with pair.near.router.generate(request(max_tokens=2000)) as generation:
            async for _ in generation:
                break
            (residence,) = pair.far.agent.residences()
            assert residence.running == 1
        await eventually(lambda: residence.running == 0)
        assert (await residence.replica.stats()).running == 0
        assert pair.relays.count == 0


async def test_a_reader_that_does_not_read_holds_back_the_source(make_pair) -> None:
    """What is under way of a stream is bounded; the rest waits as tokens where they are made."""
    async with make_pair(window_bytes=4096) as pair:
        tokens = 2000
        async with pair.near.router.generate(request(max_tokens=tokens)) as generation:
            deltas = aiter(generation)
            await anext(deltas)
            (residence,) = pair.far.agent.residences()
            ((stream,),) = pair.relays._streams.values()
            await eventually(lambda: stream.unread_bytes >= 2000)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert stream.unread_bytes <= 4096 + 64
            assert residence.running == 1
            assert sum([delta.token_count async for delta in deltas]) == tokens - 1


async def test_the_callers_error_is_the_callers(make_pair) -> None:
    async with make_pair() as pair:
        told = pair.route("far", "far")
        with pytest.raises(ContextLengthExceeded):
            await collect(pair.near, prompt_ids=(5,) * 5000)
        assert told.failures == []


async def test_a_place_that_cannot_is_followed_by_the_next(make_pair) -> None:
    async with make_pair() as pair:
        told = pair.route("nobody-there", "far")
        pair.far_speaker.network.addresses[NodeId("nobody-there")] = NOWHERE
        deltas, _ = await collect(pair.near)
        assert sum(delta.token_count for delta in deltas) == 4
        assert told.failures == [("nobody-there", "peer_unreachable")]


async def test_a_draining_node_says_so_and_the_reason_of_a_place_beats_an_absence(make_pair) -> None:
    async with make_pair() as pair:
        pair.far.agent.draining = True
        told = pair.route("nobody-there", "far")
        pair.far_speaker.network.addresses[NodeId("nobody-there")] = NOWHERE
        with pytest.raises(NodeDraining):
            await collect(pair.near)
        assert [node for node, _ in told.failures] == ["nobody-there", "far"]


async def test_a_checkpoint_that_is_not_there_is_said_to_be_not_here(make_pair) -> None:
    async with make_pair() as pair:

        async def nothing(name: object, digest: object) -> None:
            raise NotHere(f"{name} {digest}")

        serve_generations(pair.far_speaker.methods, Here(pair.far.agent, nothing, NodeId("far")))  # type: ignore[arg-type]
        told = pair.route("far")
        with pytest.raises(NotHere):
            await collect(pair.near)
        assert told.failures == [("far", "not_here")]


async def test_a_connection_lost_when_nobody_else_is_there_is_a_clear_error(make_pair) -> None:
    async with make_pair(fake=STEADY) as pair:
        told = pair.route("far")
        pair.near.router.migration = MigrationSettings(resume_timeout=0)
        async with pair.near.router.generate(request(max_tokens=2000)) as generation:
            deltas = aiter(generation)
            await anext(deltas)
            await pair.far_speaker.listener.close()
            with pytest.raises(WorkerLost, match="node far"):
                async for _ in deltas:
                    pass
        assert told.failures[0] == ("far", "peer_unreachable")
        (residence,) = pair.far.agent.residences()
        await eventually(lambda: residence.running == 0)


async def test_a_node_that_the_cluster_believes_dead_is_left(make_pair) -> None:
    async with make_pair(fake=STEADY) as pair:
        async with pair.near.router.generate(request(max_tokens=50)) as generation:
            deltas = aiter(generation)
            first = await anext(deltas)
            pair.relays.lost(NodeId("far"))
            rest = [delta async for delta in deltas]  # it was not dead, and takes its generation back
        assert [first, *rest] == (await collect(pair.near, max_tokens=50))[0]
        (move,) = generation.status().moves
        assert (move.kind, move.result, move.target) == ("failover", "done", "far")
        assert "dead" in move.reason
        (residence,) = pair.far.agent.residences()
        await eventually(lambda: residence.running == 0)


async def test_a_node_that_finds_no_replica_in_time_is_left(make_pair) -> None:
    one = DeviceSettings(replicas_max=1)
    async with make_pair(devices=one, fake=STEADY, start_timeout_seconds=0.05) as pair:
        async with pair.far.agent.hold(pair.far.store.resolve("b")):
            with pytest.raises(DeadlineExceeded):
                await collect(pair.near, model="a")
        await eventually(lambda: pair.far.agent.waiting() == 0)


async def test_an_unreachable_node_alone_is_the_reason(make_pair) -> None:
    async with make_pair() as pair:
        await pair.far_speaker.listener.close()
        with pytest.raises(PeerUnreachable):
            await collect(pair.near)

"""Generations that change their place under way: the client's side is what it would have been."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from sllmd.core.errors import Conflict, RecordNotFound, SllmdError, WorkerLost
from sllmd.core.ids import NodeId
from sllmd.engine.fake import FakeSettings
from sllmd.engine.protocol import Sampling
from sllmd.migration.settings import MigrationSettings
from sllmd.roles.berths import Berths
from sllmd.roles.carriage import Carriage
from sllmd.roles.generation import Delta, GenerationRequest
from sllmd.roles.passage import Passage
from sllmd.roles.place import Here, Place
from sllmd.roles.relay import Relays, serve_generations
from sllmd.roles.router import Generation
from sllmd.roles.turns import Turns
from sllmd.roles.work import Work
from tests.roles.conftest import MakeNode, Node, request
from tests.roles.rpc import Network, Speaker, speaking
from tests.waiting import eventually

STEADY = FakeSettings(token_seconds=0.002)
RICH = Sampling(seed=3, max_tokens=60, temperature=0.8, logprobs=2, prompt_logprobs=1)


class Preferred:
    """Places in an order that a test may change; whoever failed is asked last."""

    def __init__(self, *places: Place) -> None:
        self.places = list(places)

    def choose(self, work: Work) -> list[Place]:
        return list(self.places)

    def elsewhere(self, work: Work, node: NodeId) -> Place | None:
        return next((place for place in self.places if place.node != node), None)

    def at(self, node: NodeId) -> Place:
        return next(place for place in self.places if place.node == node)

    def failed(self, place: Place, work: Work, error: SllmdError) -> None:
        self.places.remove(place)
        self.places.append(place)


@dataclass
class Trio:
    """A router ``near`` that has a replica, too, and two more nodes."""

    near: Node
    nodes: dict[str, Node]
    speakers: dict[str, Speaker]
    berths: dict[str, Berths]
    relays: Relays

    @property
    def places(self) -> Preferred:
        return self.near.router.places  # type: ignore[return-value]

    def prefer(self, *names: str) -> None:
        self.places.places.sort(key=lambda place: names.index(place.node) if place.node in names else 9)

    async def move(self, generation: Generation, to: str, reason: str = "test") -> Passage:
        assert generation.carriage is not None
        target = self.places.at(NodeId(to))
        return await self.near.router.mover.move(generation.carriage, target, reason)

    async def warm(self) -> None:
        """A replica on every node, so that no move has to wait for one while tokens go on."""
        for node in self.nodes.values():
            async with node.agent.hold(node.store.resolve("a")):
                pass

    async def still(self) -> None:
        """Nobody holds anything."""
        for node in self.nodes.values():
            await eventually(lambda node=node: all(each.running == 0 for each in node.agent.residences()))
        assert [berths.count for berths in self.berths.values()] == [0, 0]
        assert self.relays.count == 0
        assert self.near.router.mover.count == 0


MakeTrio = Callable[..., "AsyncIterator[Trio]"]


@pytest.fixture
def make_trio(make_node: MakeNode):
    @asynccontextmanager
    async def make(*, never_there: bool = False, **far: object) -> AsyncIterator[Trio]:
        """``never_there``: ``two`` has no end of getting a replica ready."""
        network = Network()
        async with AsyncExitStack() as stack:
            near = await stack.enter_async_context(make_node(**far))
            speaker = await stack.enter_async_context(speaking(network, "near"))
            relays = Relays(speaker.connection, start_timeout_seconds=60.0)
            here = Here(near.agent, near.library.obtain_exactly, NodeId("near"))
            trio = Trio(near, {"near": near}, {}, {}, relays)
            for name in ("one", "two"):
                own = {"fake": FakeSettings(build_seconds=3600)} if never_there and name == "two" else {}
                node = await stack.enter_async_context(make_node(**(far | own)))
                other = await stack.enter_async_context(speaking(network, name))
                place = Here(node.agent, node.library.obtain_exactly, NodeId(name))
                serve_generations(other.methods, place)
                trio.berths[name] = Berths(place)
                trio.berths[name].offer(other.methods)
                trio.nodes[name], trio.speakers[name] = node, other
            others = [relays.there(NodeId(name)) for name in ("one", "two")]
            near.router.places = Preferred(*others, here)
            yield trio

    return make


async def unmoved(node: Node, wanted: GenerationRequest) -> tuple[list[Delta], object, object]:
    async with node.router.generate(wanted) as generation:
        deltas = [delta async for delta in generation]
    return deltas, generation.usage, generation.prompt_logprobs


async def follow(generation: Generation, deltas: list[Delta], count: int) -> None:
    """Take ``count`` deltas more."""
    iterator = aiter(generation)
    for _ in range(count):
        deltas.append(await anext(iterator))


async def finish(generation: Generation, deltas: list[Delta]) -> tuple[list[Delta], object, object]:
    deltas += [delta async for delta in generation]
    return deltas, generation.usage, generation.prompt_logprobs


@pytest.mark.parametrize(("source", "target"), [("one", "two"), ("one", "near"), ("near", "two")])
async def test_a_moved_generation_is_the_one_that_stayed(make_trio, make_node, source, target) -> None:
    async with make_trio(fake=STEADY) as trio, make_node() as alone:
        await trio.warm()
        trio.prefer(source)
        for wanted in (
            request(sampling=RICH),
            request(max_tokens=60, stop=("zq", "\x00")),
            request(sampling=Sampling(seed=9, max_tokens=60)),
        ):
            async with trio.near.router.generate(wanted) as generation:
                deltas: list[Delta] = []
                await follow(generation, deltas, 10)
                passage = await trio.move(generation, target)
                assert passage.result == "done"
                assert generation.status().node == source
                assert await finish(generation, deltas) == await unmoved(alone, wanted)
                assert generation.status().node == target
            status = generation.status()
            assert (status.hops, status.moves[0].result) == (1, "done")
            assert status.moves[0].pause_ms is not None
            assert status.moves[0].tokens >= 3 + 10
        await trio.still()


async def test_back_and_forth_and_round(make_trio, make_node) -> None:
    async with make_trio(fake=STEADY) as trio, make_node() as alone:
        await trio.warm()
        wanted = request(sampling=Sampling(seed=2, max_tokens=300))
        async with trio.near.router.generate(wanted) as generation:
            deltas: list[Delta] = []
            for target in ("two", "near", "one", "two"):
                await follow(generation, deltas, 5)
                assert (await trio.move(generation, target)).result == "done"
            assert await finish(generation, deltas) == await unmoved(alone, wanted)
        assert generation.status().hops == 4
        told, moves = trio.near.router.mover.status(), generation.status().moves
        assert (told.moved, told.resumed, told.failed, told.called_off, told.under_way) == (4, 0, 0, 0, 0)
        assert told.rounds == sum(move.rounds for move in moves) >= 4
        assert told.tokens == sum(move.tokens for move in moves)
        assert told.pause_ms_max == max(move.pause_ms or 0 for move in moves)
        await trio.still()


async def test_many_move_at_once_and_no_more_than_may(make_trio, make_node) -> None:
    async with make_trio(fake=STEADY, batch_max=16) as trio, make_node() as alone:
        await trio.warm()
        trio.near.router.mover._turns = Turns(count_max=3, size_max=10**6)
        wanted = [request(sampling=Sampling(seed=seed, max_tokens=200)) for seed in range(12)]
        async with AsyncExitStack() as stack:
            running = [await stack.enter_async_context(trio.near.router.generate(each)) for each in wanted]
            heads: list[list[Delta]] = [[] for _ in running]
            await asyncio.gather(*(follow(g, head, 3) for g, head in zip(running, heads, strict=True)))
            moved = await asyncio.gather(*(trio.move(each, "two") for each in running))
            assert {passage.result for passage in moved} == {"done"}
            for generation, head, each in zip(running, heads, wanted, strict=True):
                assert (await finish(generation, head))[0] == (await unmoved(alone, each))[0]
        await trio.still()


async def test_a_target_that_is_slow_to_start_delays_no_other_move(make_trio) -> None:
    async with make_trio(fake=STEADY, never_there=True) as trio, AsyncExitStack() as stack:
        trio.near.router.mover._turns = Turns(count_max=1, size_max=10)
        wanted = [request(sampling=Sampling(seed=seed, max_tokens=5000)) for seed in range(2)]
        first, second = [await stack.enter_async_context(trio.near.router.generate(each)) for each in wanted]
        await asyncio.gather(follow(first, [], 3), follow(second, [], 3))
        waiting = asyncio.create_task(trio.move(first, "two"))
        await eventually(trio.nodes["two"].agent.residences)
        assert (await trio.move(second, "near")).result == "done"
        assert not waiting.done()
        await first.__aexit__(None, None, None)
        assert (await waiting).result == "called_off"


async def test_a_move_that_cannot_be_is_refused(make_trio) -> None:
    async with make_trio(fake=STEADY) as trio:
        await trio.warm()
        async with trio.near.router.generate(request(max_tokens=500)) as generation:
            deltas: list[Delta] = []
            await follow(generation, deltas, 1)
            with pytest.raises(Conflict, match="there already"):
                await trio.move(generation, "one")
            first = asyncio.create_task(trio.move(generation, "two"))
            await asyncio.sleep(0)
            with pytest.raises(Conflict, match="moves already"):
                await trio.move(generation, "near")
            assert (await first).result == "done"
            trio.places.places = [trio.places.at(NodeId("two"))]
            with pytest.raises(RecordNotFound):
                await trio.near.router.mover.move(generation.carriage, None, "test")  # type: ignore[arg-type]
        await trio.still()


async def test_a_target_that_refuses_costs_nothing(make_trio, make_node) -> None:
    async with make_trio(fake=STEADY) as trio, make_node() as alone:
        wanted = request(max_tokens=100)
        trio.nodes["two"].agent.draining = True
        async with trio.near.router.generate(wanted) as generation:
            deltas: list[Delta] = []
            await follow(generation, deltas, 3)
            passage = await trio.move(generation, "two")
            assert (passage.result, passage.rounds) == ("failed", 0)
            assert "stopping" in str(passage.outcome)
            assert await finish(generation, deltas) == await unmoved(alone, wanted)
        assert generation.status().hops == 0
        await trio.still()


async def test_a_client_that_leaves_ends_the_move_too(make_trio) -> None:
    async with make_trio(fake=STEADY, never_there=True) as trio:
        async with trio.near.router.generate(request(max_tokens=5000)) as generation:
            deltas: list[Delta] = []
            await follow(generation, deltas, 1)
            moving = asyncio.create_task(trio.move(generation, "two"))
            await eventually(trio.nodes["two"].agent.residences)
        assert (await moving).result == "called_off"
        await trio.still()


async def test_a_generation_that_ends_before_the_target_is_there_has_not_moved(make_trio, make_node) -> None:
    async with (
        make_trio(fake=STEADY, never_there=True) as trio,
        make_node() as alone,
    ):
        wanted = request(max_tokens=20)
        async with trio.near.router.generate(wanted) as generation:
            deltas: list[Delta] = []
            await follow(generation, deltas, 1)
            moving = asyncio.create_task(trio.move(generation, "two"))
            assert await finish(generation, deltas) == await unmoved(alone, wanted)
        assert (await moving).result == "called_off"
        await trio.still()


@pytest.mark.parametrize("phase", ["holding", "warming", "moved"])
@pytest.mark.parametrize("victim", ["one", "two"])
async def test_a_node_that_goes_in_any_phase_of_a_move_breaks_no_stream(
    make_trio, make_node, victim, phase
) -> None:
    slow = FakeSettings(
        token_seconds=0.002,
        build_seconds=0.1 if phase == "holding" else 0.0,
        prefill_token_seconds=0.01 if phase == "warming" else 0.0,
    )
    async with make_trio(fake=slow) as trio, make_node() as alone:
        wanted = request(sampling=Sampling(seed=5, max_tokens=120))
        async with trio.near.router.generate(wanted) as generation:
            deltas: list[Delta] = []
            await follow(generation, deltas, 5)
            moving = asyncio.create_task(trio.move(generation, "two"))
            if phase == "holding":
                await eventually(trio.nodes["two"].agent.residences)
            elif phase == "warming":
                await eventually(lambda: trio.berths["two"].count)
            else:
                await moving
            await trio.speakers[victim].listener.close()
            assert await finish(generation, deltas) == await unmoved(alone, wanted)
            await moving
        await trio.still()


async def test_a_replica_that_dies_is_followed_by_a_fresh_one_on_the_same_node(make_node) -> None:
    async with make_node(fake=STEADY) as node, make_node() as alone:
        wanted = [request(sampling=Sampling(seed=seed, max_tokens=60, logprobs=1)) for seed in range(5)]
        async with AsyncExitStack() as stack:
            running = [await stack.enter_async_context(node.router.generate(each)) for each in wanted]
            heads: list[list[Delta]] = [[] for _ in running]
            await asyncio.gather(*(follow(g, head, 5) for g, head in zip(running, heads, strict=True)))
            (residence,) = node.agent.residences()
            assert residence.replica is not None
            residence.replica._lose("it was killed")  # type: ignore[attr-defined]
            for generation, head, each in zip(running, heads, wanted, strict=True):
                assert (await finish(generation, head))[0] == (await unmoved(alone, each))[0]
                (move,) = generation.status().moves
                assert (move.kind, move.result) == ("failover", "done")
                assert "killed" in move.reason
        (fresh,) = node.agent.residences()
        assert fresh is not residence


async def test_a_generation_that_kills_what_runs_it_is_given_up(make_node) -> None:
    async with make_node(fake=FakeSettings(crash_at_token=3)) as node:
        async with node.router.generate(request(max_tokens=10)) as generation:
            with pytest.raises(WorkerLost, match="crash at token 3"):
                async for _ in generation:
                    pass
        attempts = MigrationSettings().attempts_max
        assert [move.result for move in generation.status().moves] == ["failed"] * attempts


@pytest.mark.slow
async def test_a_stalled_source_is_left_if_there_is_another_place(make_trio, make_node) -> None:
    async with make_trio(fake=STEADY) as trio, make_node() as alone:
        trio.near.router.migration = MigrationSettings(stall_min=3.0, stall_gaps=2.0)
        wanted = request(max_tokens=80)
        async with trio.near.router.generate(wanted) as generation:
            deltas: list[Delta] = []
            await follow(generation, deltas, 5)
            (residence,) = trio.nodes["one"].agent.residences()
            hang(residence.replica)
            assert await finish(generation, deltas) == await unmoved(alone, wanted)
        (move,) = generation.status().moves
        assert (move.reason, move.target) == ("its tokens stalled", "two")
        await trio.still()


QUIET = MigrationSettings(stall_min=0.5, stall_gaps=2.0, silence_max=1.0, first_token_max=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [0, 5])
async def test_a_source_that_is_silent_is_given_up_if_there_is_no_other_place(make_node, tokens) -> None:
    """However alive it looks; before its first token, too."""
    async with make_node(fake=STEADY) as node, node.agent.hold(node.store.resolve("a")) as grant:
        node.router.migration = QUIET
        async with node.router.generate(request(max_tokens=10**6)) as generation:
            deltas: list[Delta] = []
            if not tokens:
                hang(grant.replica)
            await follow(generation, deltas, tokens)
            hang(grant.replica)
            with pytest.raises(WorkerLost, match="no token came"):
                await finish(generation, deltas)


@pytest.mark.slow
async def test_a_source_that_is_silent_is_followed_by_another_place(make_trio, make_node) -> None:
    async with make_trio(fake=STEADY) as trio, make_node() as alone:
        trio.near.router.migration = QUIET
        trio.near.router.mover.move_soon = lambda *_: None  # type: ignore[method-assign]
        wanted = request(max_tokens=80)
        async with trio.near.router.generate(wanted) as generation:
            deltas: list[Delta] = []
            await follow(generation, deltas, 5)
            hang(trio.nodes["one"].agent.residences()[0].replica)
            assert await finish(generation, deltas) == await unmoved(alone, wanted)
        (move,) = generation.status().moves
        assert (move.kind, move.target) == ("failover", "two")


async def test_what_a_generation_waits_for_may_be_called_off(make_node) -> None:
    """Its client hears of it."""
    forever = request(max_tokens=10**6)
    async with make_node(fake=STEADY) as node, node.router.generate(forever) as generation:
        deltas: list[Delta] = []
        await follow(generation, deltas, 5)
        assert generation.carriage is not None
        assert generation.carriage._listener is not None
        generation.carriage._listener.cancel()
        with pytest.raises(WorkerLost, match="called off"):
            await finish(generation, deltas)


def hang(replica) -> None:
    """Its engine does no step any more."""
    replica._loop_task.cancel()


async def test_what_changes_its_place_is_told(make_trio) -> None:
    async with make_trio(fake=STEADY) as trio:
        await trio.warm()
        told: list[tuple[Carriage, Passage]] = []
        trio.near.router.mover.observers.append(lambda carriage, passage: told.append((carriage, passage)))
        async with trio.near.router.generate(request(max_tokens=100)) as generation:
            deltas: list[Delta] = []
            await follow(generation, deltas, 3)
            passage = await trio.move(generation, "two", "because")
            assert told == [(generation.carriage, passage)]
            assert (passage.reason, passage.source, passage.target) == ("because", "one", "two")
            with pytest.raises(Conflict):
                await trio.move(generation, "two")
        assert len(told) == 1

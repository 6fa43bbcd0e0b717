"""A place that the leader chooses: what its router hears of the start that was made for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager

import pytest

from sllmd.core.ids import Digest, GenerationId, ModelName, NodeId, RequestId
from sllmd.engine.protocol import GenerationState, Sampling
from sllmd.roles.asked import AskedPlace
from sllmd.roles.decided import Decided, WayFact
from sllmd.roles.place import Place
from sllmd.roles.work import Granted, Happening, Work
from sllmd.scheduler.decisions import Way

NODE = NodeId("b")
SAMPLING = Sampling(seed=1, max_tokens=1)
WORK = Work(RequestId("r"), ModelName("m"), Digest("d"), GenerationState(GenerationId("g"), [1], SAMPLING))


class Ready(Place):
    """Has a replica at once."""

    def __init__(self, granted: Granted) -> None:
        self.node = NODE
        self._granted = granted

    async def run(self, work: Work) -> AsyncGenerator[Happening, None]:
        yield self._granted

    async def berth(self, work: Work) -> AbstractAsyncContextManager[object]:
        raise AssertionError(work)


def decision(way: Way) -> Decided:
    fact = WayFact(way, NODE, "ssd", 0.0, 0.5, 0.0, 0.75, "chosen")
    return Decided(ModelName("m"), NODE, "", 0.75, 0.0, NodeId("a"), 2, (fact,))


async def heard(granted: Granted, decided: Decided | None) -> Granted:
    async def resolve(_work: Work) -> tuple[Place, Decided | None]:
        return Ready(granted), decided

    [happening] = [each async for each in AskedPlace(resolve).run(WORK)]
    assert isinstance(happening, Granted)
    return happening


@pytest.mark.parametrize("way", [Way.LOAD, Way.CLEAR])
async def test_a_replica_that_was_started_for_it_is_cold_however_soon_it_was_ready(way: Way) -> None:
    told = await heard(Granted(NODE, cold=False, tier="device"), decision(way))
    assert (told.cold, told.tier, told.estimate_ms) == (True, "ssd", 750.0)
    assert told.load_ms >= 0
    assert told.decision == decision(way)


@pytest.mark.parametrize("way", [Way.USE, Way.WAIT_ROW])
async def test_one_that_was_there_is_not(way: Way) -> None:
    warm = Granted(NODE, cold=False, tier="device")
    told = await heard(warm, decision(way))
    assert (told.cold, told.tier, told.load_ms) == (False, "device", 0.0)
    assert await heard(warm, None) == warm


async def test_what_its_node_measured_stands() -> None:
    measured = Granted(NODE, cold=True, tier="dram", load_ms=3.0, estimate_ms=4.0)
    told = await heard(measured, decision(Way.LOAD))
    assert (told.tier, told.load_ms, told.estimate_ms) == ("dram", 3.0, 4.0)

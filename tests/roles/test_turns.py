"""Who may be under way, and who waits: by number and by size."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from sllmd.roles.turns import Turns


class Crowd:
    """Some that want a turn each, in this order."""

    def __init__(self, turns: Turns, sizes: Sequence[int]) -> None:
        self.inside: list[int] = []
        self.turns = turns
        self._leave = [asyncio.Event() for _ in sizes]
        self.tasks = [asyncio.create_task(self._come(number, size)) for number, size in enumerate(sizes)]

    async def _come(self, number: int, size: int) -> None:
        async with self.turns.turn(size):
            self.inside.append(number)
            try:
                await self._leave[number].wait()
            finally:
                self.inside.remove(number)

    async def leave(self, number: int) -> None:
        self._leave[number].set()
        await self.tasks[number]
        await settled()

    async def call_back(self, number: int) -> None:
        self.tasks[number].cancel()
        await settled()


async def settled() -> None:
    """Every task has come to where it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("sizes", "at_once"),
    [
        ([1, 1, 1, 1, 1], [0, 1, 2]),  # three at most
        ([5, 5, 1], [0, 1]),  # ten at most
        ([5, 6, 1], [0]),  # who came later does not overtake
        ([50, 1], [0]),  # larger than the bound: alone
        ([1, 50], [0]),
        ([10], [0]),
    ],
)
async def test_who_is_under_way_at_once(sizes: list[int], at_once: list[int]) -> None:
    crowd = Crowd(Turns(count_max=3, size_max=10), sizes)
    await settled()
    assert crowd.inside == at_once
    for number in range(len(sizes)):
        await crowd.leave(number)
    assert (crowd.inside, crowd.turns.count, crowd.turns.size) == ([], 0, 0)


async def test_the_next_is_who_has_waited_longest() -> None:
    crowd = Crowd(Turns(count_max=3, size_max=10), [10, 4, 6, 1])
    await settled()
    await crowd.leave(0)
    assert crowd.inside == [1, 2]
    await crowd.leave(1)
    assert crowd.inside == [2, 3]
    await crowd.leave(2)
    await crowd.leave(3)


@pytest.mark.parametrize("called_back", [0, 1, 2])
async def test_who_is_called_back_holds_up_nobody(called_back: int) -> None:
    crowd = Crowd(Turns(count_max=3, size_max=10), [10, 10, 10, 2])
    await settled()
    await crowd.call_back(called_back)
    for number in sorted({0, 1, 2} - {called_back}):
        assert crowd.inside == [number]
        await crowd.leave(number)
    assert crowd.inside == [3]
    await crowd.leave(3)
    assert crowd.turns.count == 0


async def test_called_back_in_the_instant_of_its_turn() -> None:
    crowd = Crowd(Turns(count_max=1, size_max=10), [1, 1, 1])
    await settled()
    crowd._leave[0].set()
    await asyncio.sleep(0)  # it leaves, and lets in the second, which has not woken yet
    crowd.tasks[1].cancel()
    await settled()
    assert crowd.inside == [2]
    await crowd.leave(2)
    assert crowd.turns.count == 0

"""Who waits at the leader is woken in turn, and misses no ring."""

from __future__ import annotations

import asyncio

from sllmd.roles.bell import Bell
from tests.waiting import eventually


async def test_those_who_wait_are_woken_in_turn_and_the_greedy_key_last() -> None:
    bell, woken = Bell(), []

    async def wait(key: str, rings: int) -> None:
        await bell.wait(rings, key=key)
        woken.append(key)

    async with asyncio.TaskGroup() as group:
        for key in [*["greedy"] * 50, "other", "third"]:
            group.create_task(wait(key, bell.rings))
        await eventually(lambda: len(bell._waiting) == 52)
        for _ in range(5):
            bell.served(key="greedy", priority=0)
        bell.ring()
    assert {"other", "third"} <= set(woken[:4])
    assert len(woken) == 52


async def test_a_ring_between_looking_and_waiting_is_not_missed() -> None:
    bell = Bell()
    rings = bell.rings
    bell.ring()
    await bell.wait(rings)


async def test_one_who_leaves_is_forgotten() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(bell.rings))
    await eventually(lambda: bell._waiting)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not bell._waiting
    bell.ring()

"""Who waits for the next leader, and for how long."""

from __future__ import annotations

import asyncio

import pytest

from sllmd.cluster.control import Leadership
from sllmd.core.errors import ControlUnavailable
from sllmd.core.ids import NodeId
from sllmd.roles.led import Leads, Led

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
LED = Leadership(3, A, is_me=False)


async def test_the_next_leader_is_waited_for() -> None:
    led = Led(3600.0)
    led.look(LED, {A, B, C}, (A, B, C))
    led.look(LED, {B, C}, (A, B, C))
    waiting = asyncio.ensure_future(led.somebody())
    await asyncio.sleep(0)
    led.look(Leadership(4, B, is_me=True), {B, C}, (A, B, C))
    assert await waiting == Leads(4, B)


@pytest.mark.parametrize("voters", [(A,), (A, C)])
async def test_nobody_waits_where_nobody_can_be_elected(voters: tuple[NodeId, ...]) -> None:
    led = Led(3600.0)
    led.look(LED, {A, B, C}, voters)
    led.look(LED, {B, C}, voters)
    with pytest.raises(ControlUnavailable):
        await led.somebody()
    led.look(LED, {A, B, C}, voters)
    assert await led.somebody() == Leads(3, A)
    assert led.patience_seconds == 3600.0


async def test_who_waits_already_stops_when_the_majority_goes() -> None:
    led = Led(3600.0)
    led.look(Leadership(3, None, is_me=False), {A, B}, (A, B, C))
    waiting = asyncio.ensure_future(led.somebody())
    await asyncio.sleep(0)
    led.look(Leadership(3, None, is_me=False), {B}, (A, B, C))
    with pytest.raises(ControlUnavailable):
        await waiting

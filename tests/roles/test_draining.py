"""A node is emptied by moving: for its own router and for others, by order, on leaving; it stays so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sllmd.core.errors import NodeDraining
from sllmd.engine.protocol import Sampling
from sllmd.roles.status import DrainStep
from tests.roles.test_cluster import MakeMember, Member, make_member
from tests.waiting import eventually

__all__ = ["make_member"]

STEADY = {"token_seconds": 0.015}
LONG = {"max_tokens": 400, "temperature": 0.0, "seed": 1}


def running(member: Member) -> int:
    return member.daemon.agent.running


async def write(where: Member, count: int) -> list[asyncio.Task[Any]]:
    sampling = Sampling(**LONG)  # type: ignore[arg-type]
    return [asyncio.create_task(where.complete("m", sampling=sampling)) for _ in range(count)]


async def drained(member: Member, node: str, **options: Any) -> list[DrainStep]:
    desk = member.daemon.operator.cluster
    assert desk is not None
    return [step async for step in desk.drain(node, options.pop("seconds", 60.0), moves=True)]


@pytest.mark.slow
async def test_what_runs_for_any_router_moves_and_no_client_notices(make_member: MakeMember) -> None:
    async with (
        make_member("a", models={"m": STEADY}) as a,
        make_member("b", models={"m": STEADY}, join=a) as b,
        make_member("c", join=a) as c,
    ):
        await c.knows("m")
        await b.complete("m")
        await eventually(lambda: a.node.identity.node in c.daemon.plane.table.inventories)
        b.daemon.agent.stop_taking("the test wants all of them at a")
        await eventually(lambda: c.daemon.plane.table.inventories[b.node.identity.node].draining)
        whole, _ = await (await write(a, 1))[0]
        texts = [*await write(a, 3), *await write(c, 3)]
        await eventually(lambda: running(a) == 6)
        b.daemon.agent.resume()
        await eventually(lambda: not c.daemon.plane.table.inventories[b.node.identity.node].draining)
        await eventually(lambda: not a.daemon.plane.table.inventories[b.node.identity.node].draining)
        steps = await drained(c, "a")
        assert steps[-1].status == "drained"
        assert (steps[-1].moved, steps[-1].left) == (6, 0), steps
        assert {step.target for step in steps if step.result == "done"} == {"b"}
        assert running(b) == 6
        assert {text for text, _ in await asyncio.gather(*texts)} == {whole}

        # It takes nothing, and says so everywhere, until it is told otherwise.
        assert a.daemon.agent.draining
        me = a.node.identity.node
        await eventually(lambda: c.node.control.view().catalogue.nodes.get(me).cordoned)  # type: ignore[union-attr]
        assert (await a.complete("m"))[1].node == b.node.identity.node
        desk = c.daemon.operator.cluster
        assert desk is not None
        await desk.undrain("a")
        await eventually(lambda: not a.daemon.agent.draining)
        assert (await a.complete("m"))[1].node == me


@pytest.mark.slow
async def test_a_restart_remembers_and_alone_it_waits(make_member: MakeMember) -> None:
    async with make_member("a", models={"m": STEADY}) as a:
        [task] = await write(a, 1)
        await eventually(lambda: running(a))
        steps = await drained(a, "a", seconds=0.05)
        assert (steps[-1].status, steps[-1].left) == ("timeout", 1)
        assert len((await task)[0]) > 0
        assert (await drained(a, "a"))[-1].status == "drained"
    async with make_member("a") as again:
        await eventually(lambda: again.daemon.agent.draining)
        try:
            await again.complete("m")
        except NodeDraining:
            pass
        else:
            raise AssertionError("it takes work")


@pytest.mark.slow
async def test_who_stops_moves_what_it_runs_and_hands_over(make_member: MakeMember) -> None:
    async with (
        make_member("a", models={"m": STEADY}) as a,
        make_member("b", models={"m": STEADY}, join=a) as b,
    ):
        await b.knows("m")
        [task] = await write(a, 1)
        await eventually(lambda: running(a) == 1)
        assert a.node.control.leadership().is_me
        await a.daemon.drain(60.0)
        assert not a.daemon.router.running()
        assert (running(a), (await task)[1].node) == (0, b.node.identity.node)
        await eventually(lambda: b.node.control.leadership().is_me or a.node.control.leadership().is_me)

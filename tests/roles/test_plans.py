"""What ``plan`` says before a cold start is what then happens, and what ``explain`` shows of it."""

from __future__ import annotations

import random

import pytest

from sllmd.core.ids import ModelName
from tests.roles import test_cluster
from tests.roles.test_cluster import MakeMember, Member
from tests.roles.test_leader import planned
from tests.waiting import eventually

make_member = test_cluster.make_member
NAMES = ("m0", "m1", "m2", "m3")
STARTS = 16


@pytest.mark.slow
async def test_the_plans_first_line_is_the_node_chosen_and_its_total_what_is_explained(
    make_member: MakeMember,
) -> None:
    """In small what ``scripts/bench scheduler`` does with fifty starts over capped paths, where it also holds
    the totals against the clock: here nobody waits for one."""
    chance = random.Random("plans")
    first, second, third = NAMES[:2], NAMES[2:], NAMES[1:3]
    async with (
        make_member("a", models={name: {} for name in first}) as a,
        make_member("b", models={name: {} for name in second}, join=a) as b,
        make_member("c", models={name: {} for name in third}, join=a) as c,
    ):
        members = {each.node.identity.node: each for each in (a, b, c)}
        for each in members.values():
            for name in NAMES:
                await each.knows(name)
        leader = a.daemon.plane.leader
        await eventually(lambda: (len(leader.picture.view.nodes), len(leader.picture.digests)) == (3, 4))
        for _ in range(STARTS):
            name, router = chance.choice(NAMES), chance.choice([a, b, c])
            await eventually(lambda name=name: leader.plan(ModelName(name)).ways[0].way == "load")
            plan = await planned(router, name)
            assert plan.ways[0].way == "load"
            _, timing = await router.complete(name)
            assert timing.decision is not None
            assert timing.node == timing.decision.node == plan.ways[0].node
            assert timing.decision.total_seconds == pytest.approx(plan.total_seconds, rel=0.15)
            await eventually(lambda name=name: leader.plan(ModelName(name)).ways[0].way == "use")
            await _gone(members[timing.node], name, [a, b, c], keep_dram=chance.random() < 0.7)


async def _gone(member: Member, model: str, all_members: list[Member], *, keep_dram: bool) -> None:
    """It is unloaded, and everybody has heard so: who has not sends the next one there without asking."""
    await _all_see(all_members, model, "serving")
    await member.daemon.operator.unload(model, keep_dram=keep_dram)
    await _all_see(all_members, model, "cold")


async def _all_see(all_members: list[Member], model: str, state: str) -> None:
    await eventually(lambda: all(each.daemon.router.model(model).state == state for each in all_members))

"""The leader among whole nodes in one process: where models start, and what becomes of it on bad days."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from sllmd.cluster.catalogue.commands import DeploymentPut, ReplicaIntent, ReplicaPlan
from sllmd.cluster.catalogue.records import DeploymentSpec, Replica, ReplicaState
from sllmd.cluster.member import RaftControl
from sllmd.core.errors import SllmdError
from sllmd.core.ids import ModelName
from sllmd.roles.decided import Decided
from sllmd.roles.picture import replica_id
from tests.live import put_model
from tests.roles import test_cluster
from tests.roles.conftest import request
from tests.roles.test_cluster import MakeMember, Member
from tests.waiting import eventually

make_member = test_cluster.make_member
SLOW_START = {"build_seconds": 1.0}
AT_ONCE = {"residency_min": 0}
ONE_PLACE = {"devices": {"replicas_max": 1}, "serving": AT_ONCE, "scheduler": AT_ONCE}


def intents(member: Member) -> list[Replica]:
    return list(member.node.control.view().catalogue.replicas.values())


def spec_of(member: Member, model: str) -> DeploymentSpec:
    deployment = member.node.control.view().catalogue.deployments.get(model)
    assert deployment is not None
    return deployment.spec


async def planned(member: Member, model: str) -> Decided:
    """A plan, once the leader knows the model."""
    while True:
        try:
            plan = await member.daemon.plane.asking.plan(ModelName(model))
        except SllmdError:
            await asyncio.sleep(0.01)
            continue
        if plan.ways:
            return plan
        await asyncio.sleep(0.01)


async def three_vote(member: Member) -> None:
    control = member.node.control
    assert isinstance(control, RaftControl)
    await eventually(lambda: len(control.membership.voters) == 3)


async def confirmed(member: Member, *states: ReplicaState) -> None:
    await eventually(lambda: [each.state for each in intents(member)] == list(states))


async def test_a_cold_model_starts_where_the_plans_first_line_says(make_member: MakeMember) -> None:
    async with make_member("a", models={"m": {}}) as a:
        plan = await planned(a, "m")
        assert (plan.ways[0].way, plan.ways[0].source) == ("load", "ssd")
        _, timing = await a.complete("m")
        assert timing.decision is not None
        assert timing.decision.node == timing.node == plan.node
        assert timing.decision.ways[0].why == "chosen"
        await confirmed(a, ReplicaState.READY)
        assert (await planned(a, "m")).ways[0].way == "use"
        await a.daemon.operator.unload("m")
        await confirmed(a)


@pytest.mark.slow
async def test_a_model_that_is_deployed_before_its_holder_has_reported_is_waited_for(
    make_member: MakeMember,
) -> None:
    async with make_member("a") as a, make_member("b", join=a) as b:
        leader, holder = a.node.identity.node, b.node.identity.node
        await eventually(lambda: holder in a.daemon.plane.table.inventories)
        b.daemon.plane.reporter.follow(None, holder)
        put_model(b.directory, "m", {})
        deployments = a.node.control.view
        await eventually(lambda: deployments().catalogue.deployments.get("m") is not None)
        answer = asyncio.create_task(a.complete("m"))
        await eventually(a.daemon.router.requests)
        b.daemon.plane.reporter.follow(leader, holder)
        assert (await answer)[1].node == holder


@pytest.mark.slow
async def test_of_three_nodes_the_one_with_the_bytes_and_everybody_agrees(make_member: MakeMember) -> None:
    async with (
        make_member("a") as a,
        make_member("b", models={"m": {"build_seconds": 0.3}}, join=a) as b,
        make_member("c", join=a) as c,
    ):
        await c.knows("m")
        leader = a.daemon.plane.leader
        await eventually(lambda: len(leader.picture.view.nodes) == 3 and leader.picture.digests)
        plans = [await planned(each, "m") for each in (a, b, c)]
        assert {plan.node for plan in plans} == {b.node.identity.node}
        assert len(plans[0].ways) == 3
        _, timing = await c.complete("m")
        assert timing.node == b.node.identity.node
        assert timing.decision is not None
        assert timing.decision.leader == a.node.identity.node
        await confirmed(c, ReplicaState.READY)
        # A node that says that it has what it has not gets the next one, and fetches it: nobody notices.
        me = c.node.identity.node
        fact = leader.picture.inventories[b.node.identity.node].checkpoints[0]
        lie = replace(leader.picture.inventories[me], checkpoints=(replace(fact, tier="dram"),))
        await b.daemon.operator.unload("m")
        await confirmed(a)

        def believes() -> bool:
            leader.take(me, lie)
            first = leader.plan(ModelName("m")).ways[0]
            return (first.node, first.source) == (me, "dram")

        await eventually(believes)
        assert (await a.complete("m"))[0]


@pytest.mark.slow
async def test_ten_models_rush_one_device(make_member: MakeMember) -> None:
    models = {f"m{number}": {"token_ids": [32 + number, 33 + number]} for number in range(10)}
    async with make_member("a", models=models, **ONE_PLACE) as a:
        await planned(a, "m9")
        answers = await asyncio.gather(*(a.complete(name) for name in models for _ in range(3)))
        assert len(answers) == 30
        await eventually(lambda: len(intents(a)) == 1)
        assert len(a.replicas()) == 1


@pytest.mark.slow
async def test_a_leader_that_goes_after_the_intent_leaves_no_ghost(make_member: MakeMember) -> None:
    async with AsyncExitStack() as founders:
        a = await founders.enter_async_context(make_member("a"))
        async with make_member("b", models={"m": {}}, join=a) as b, make_member("c", join=a) as c:
            await c.knows("m")
            await three_vote(a)
            await eventually(lambda: a.daemon.plane.leader.picture.digests)
            digest = a.daemon.plane.leader.picture.digests[ModelName("m")]
            me = b.node.identity.node
            key = replica_id(ModelName("m"), digest, me)
            device = next(iter(b.node.devices))
            ghost = ReplicaIntent(key, ModelName("m"), me, {device: 1})
            a.daemon.plane.leader.rest()  # it would see at once that nobody carries it out
            await a.node.control.propose(ReplicaPlan((ghost,)))
            await founders.aclose()
            await eventually(lambda: b.daemon.plane.leader.leads or c.daemon.plane.leader.leads)
            await confirmed(c)
            _, timing = await c.complete("m")
            assert timing.node == me
            await confirmed(c, ReplicaState.READY)


@pytest.mark.slow
async def test_a_leader_that_goes_before_the_confirmation_has_nothing_done_twice(
    make_member: MakeMember,
) -> None:
    async with AsyncExitStack() as founders:
        a = await founders.enter_async_context(make_member("a"))
        async with (
            make_member("b", models={"m": SLOW_START}, join=a) as b,
            make_member("c", join=a) as c,
        ):
            await c.knows("m")
            await three_vote(a)
            await eventually(lambda: len(a.daemon.plane.leader.picture.view.nodes) == 3)
            await planned(c, "m")
            starts: list[str] = []
            b.daemon.agent.observers.append(lambda _residence, change, _reason: starts.append(change))
            answer = asyncio.create_task(c.complete("m"))
            await eventually(b.daemon.agent.residences)
            await founders.aclose()
            _, timing = await answer
            assert timing.node == b.node.identity.node
            await eventually(lambda: any(each.daemon.plane.leader.leads for each in (b, c)))
            await confirmed(c, ReplicaState.READY)
            assert starts == ["starting", "serving"]
            assert c.replicas() == []


@pytest.mark.slow
async def test_a_model_is_deleted_and_changed_while_it_loads(make_member: MakeMember) -> None:
    async with make_member("a", models={"m": SLOW_START, "n": SLOW_START}) as a:
        await planned(a, "m")
        await planned(a, "n")
        control = a.node.control
        answer = asyncio.create_task(a.complete("n"))
        await eventually(lambda: "n" in a.replicas())
        changed = replace(spec_of(a, "n"), min_replicas=1)
        await control.propose(DeploymentPut(ModelName("n"), changed, None))
        assert (await answer)[0]
        await confirmed(a, ReplicaState.READY)

        doomed = asyncio.create_task(a.complete("m"))
        await eventually(lambda: "m" in a.replicas())
        desk = a.daemon.operator.cluster
        assert desk is not None
        await desk.steering.delete_deployment("m")
        assert control.view().catalogue.deployments.get("m") is None
        await eventually(lambda: "m" not in a.replicas())
        await asyncio.wait([doomed])
        assert [each.deployment for each in intents(a)] == ["n"]


@pytest.mark.slow
async def test_as_many_replicas_as_asked_for_also_when_a_node_goes(make_member: MakeMember) -> None:
    soon = {"scale_down_delay": 0, "keep_alive_min": 0, "keep_alive_loads": 0.01, "residency_min": 0}
    async with make_member("a", models={"m": {}}, scheduler=soon) as a, make_member("c", join=a) as c:
        async with make_member("b", join=a):
            await planned(a, "m")
            wanted = replace(spec_of(a, "m"), min_replicas=2)
            await a.node.control.propose(DeploymentPut(ModelName("m"), wanted, None))
            await confirmed(a, ReplicaState.READY, ReplicaState.READY)
        await eventually(lambda: a.replicas() == c.replicas() == ["m"])
        await confirmed(a, ReplicaState.READY, ReplicaState.READY)
        await a.node.control.propose(DeploymentPut(ModelName("m"), replace(wanted, min_replicas=1), None))
        await eventually(lambda: len(a.replicas() + c.replicas()) == 1)
        await confirmed(a, ReplicaState.READY)


@pytest.mark.slow
async def test_replicas_come_with_their_work_on_other_nodes_and_go_without(make_member: MakeMember) -> None:
    soon = {"scale_down_delay": 0, "keep_alive_min": 0, "keep_alive_loads": 0.01, "residency_min": 0}
    async with (
        make_member("a", models={"m": {"token_seconds": 0.02}}, scheduler=soon) as a,
        make_member("b", join=a) as b,
        make_member("c", join=a) as c,
    ):
        await planned(a, "m")
        members = (a, b, c)
        wanted = replace(spec_of(a, "m"), target_running=1, max_replicas=2)
        await a.node.control.propose(DeploymentPut(ModelName("m"), wanted, None))
        for each in members:
            await each.knows("m")
        async with AsyncExitStack() as clients:
            for each in members:  # three at once, where one each is wanted and two replicas are allowed
                asked = each.daemon.router.generate(request("m", max_tokens=2000))
                generation = await clients.enter_async_context(asked)
                await anext(aiter(generation))
            await confirmed(a, ReplicaState.READY, ReplicaState.READY)
            assert sorted(len(each.replicas()) for each in members) == [0, 1, 1]
        await confirmed(a, ReplicaState.READY)
        await eventually(lambda: sum(len(each.replicas()) for each in members) == 1)


@pytest.mark.parametrize("prefetch", [True, False])
async def test_what_was_asked_for_is_lifted_again_before_anybody_asks(
    make_member: MakeMember, *, prefetch: bool
) -> None:
    ahead = {"prefetch": prefetch, "prefetch_interval": 0.05}
    async with make_member("a", models={"m": {"token_seconds": 0.02}}, scheduler=ahead) as a:
        await planned(a, "m")
        known = a.daemon.plane.leader.picture.view.models[ModelName("m")]
        async with a.daemon.router.generate(request("m", max_tokens=2000)) as generation:
            await anext(aiter(generation))
            await eventually(lambda: known.arrivals.count)
        checkpoint, agent = await a.daemon.router.obtain("m"), a.daemon.agent
        await agent.unload(checkpoint, keep_dram=True)
        assert a.daemon.operator._tier.evict(checkpoint.manifest.digest)
        agent.changed()
        if prefetch:
            await eventually(lambda: agent.where(checkpoint) == "dram")
            assert not a.replicas()
        else:
            await eventually(lambda: a.daemon.plane.leader.plan(ModelName("m")).ways[0].source == "ssd")
            await asyncio.sleep(0.2)  # four looks' time; there is nothing to wait for where none is made
            assert agent.where(checkpoint) == "ssd"


@pytest.mark.slow
async def test_a_node_that_has_nothing_to_report_is_not_forgotten(make_member: MakeMember) -> None:
    async with make_member("a") as a, make_member("b", models={"n": {}}, join=a) as b:
        quiet = b.node.identity.node
        assert (await planned(a, "n")).node == quiet
        leader = a.daemon.plane.leader
        leader.picture.view.nodes[quiet].heard_seconds -= 100  # and the others reported all the time
        assert leader.plan(ModelName("n")).node == quiet


@pytest.mark.slow
async def test_a_model_whose_replicas_died_with_their_node_can_be_deleted(make_member: MakeMember) -> None:
    async with make_member("a") as a, make_member("c", join=a) as c:
        async with make_member("b", models={"m": {}}, join=a) as b:
            await three_vote(a)
            await c.knows("m")
            assert (await c.complete("m"))[1].node == b.node.identity.node
            await confirmed(c, ReplicaState.READY)
        await confirmed(c)
        desk = c.daemon.operator.cluster
        assert desk is not None
        await desk.steering.delete_deployment("m")

"""The leader when what it hears is late, lost, wrong or impossible, and when the world changes under it.

Whole nodes in one process, their real messages. What a node is made to be slow at, it is by a lock of its own
that the test holds: orders are then on their way for as long as the test likes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from sllmd.cluster.catalogue.commands import DeploymentPut
from sllmd.cluster.catalogue.records import ReplicaState as Agreed
from sllmd.core.errors import InsufficientCapacity
from sllmd.core.ids import GenerationId, ModelName, NodeId, RequestId
from sllmd.roles import starts
from sllmd.roles.admission import OFF_DEVICE
from sllmd.roles.decided import Decided, Question
from sllmd.roles.inventory import GenerationDetail, Inventory, ReplicaDetail, ReplicaFact, delta_report
from sllmd.scheduler import estimate
from tests.roles import test_cluster
from tests.roles.test_cluster import MakeMember, Member
from tests.roles.test_leader import ONE_PLACE, confirmed, intents, planned, spec_of, three_vote
from tests.waiting import eventually

make_member = test_cluster.make_member
M = ModelName("m")
CONTRADICTS = "its reports contradict each other"
NEVER_READY = {"workers": {"engine": "fake", "in_process": True, "fake": {"build_seconds": 3600.0}}}
"""A node on which bytes arrive and nothing comes of them."""


def changes_of(member: Member) -> list[str]:
    """What becomes of replicas there, from now on."""
    changes: list[str] = []
    member.daemon.agent.observers.append(lambda _residence, change, _reason: changes.append(change))
    return changes


@asynccontextmanager
async def no_orders(member: Member) -> AsyncIterator[None]:
    """Orders that come to this node are not looked at meanwhile."""
    async with member.daemon.plane.orders._one_at_a_time:
        yield


def told_of(leads: Member, member: Member, inventory: Inventory) -> bool:
    """The leader hears this of ``member``, which did not say it: its next report builds on something else."""
    keeper, node = leads.daemon.plane.keeper, member.node.identity.node
    versioned = keeper._required()._known[node]
    before = versioned.inventory
    version = versioned.version
    return keeper.take(node, delta_report(versioned.boot, version + 1, version, before, inventory))


async def started(leads: Member, model: str) -> Decided:
    """The leader can place it, and its router has heard who has it."""
    await leads.knows(model)
    return await planned(leads, model)


def known_of(leads: Member, member: Member) -> Inventory:
    return leads.daemon.plane.leader.picture.inventories[member.node.identity.node]


# --- reports ---


async def test_reports_that_come_late_start_nothing_twice(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, "PROMISE_SECONDS", 0.2)
    async with make_member("a") as a, make_member("b", models={"m": {}}, join=a) as b:
        there = b.node.identity.node
        assert (await started(a, "m")).node == there
        changes = changes_of(b)
        await b.daemon.plane.reporter.close()
        assert (await a.complete("m"))[1].node == there
        leader = a.daemon.plane.leader
        await eventually(lambda: not leader.picture.view.replicas, "the promise has come to nothing")
        await confirmed(a)
        # As far as the leader knows it is cold, and starts soonest where it is.
        assert leader.plan(M).ways[0].way == "load"
        assert (await a.complete("m"))[1].node == there
        b.daemon.plane.reporter.follow(a.node.identity.node, there)
        await confirmed(a, Agreed.READY)
        assert changes == ["starting", "serving"]


async def test_a_report_that_is_lost_is_asked_for_again(make_member: MakeMember) -> None:
    rarely = {"routing": {"full_report_interval": 3600.0}}
    async with make_member("a", **rarely) as a, make_member("b", models={"m": {}}, join=a, **rarely) as b:
        await started(a, "m")
        nothing_new = known_of(a, b)
        assert told_of(a, b, nothing_new)
        assert (await a.complete("m"))[1].node == b.node.identity.node
        await confirmed(a, Agreed.READY)
        assert told_of(a, b, known_of(a, b))
        await b.daemon.operator.unload("m")
        await confirmed(a)


async def test_a_node_that_contradicts_itself_gets_nothing_until_it_makes_sense(
    make_member: MakeMember,
) -> None:
    async with (
        make_member("a", models={"m": {}}) as a,
        make_member("b", models={"n": {}, "k": {}}, join=a) as b,
    ):
        there = b.node.identity.node
        for name in ("n", "k"):
            assert (await started(a, name)).node == there
        true = known_of(a, b)
        fact, twice = true.checkpoints[0], GenerationDetail(GenerationId("g"), 4, 0)
        device = true.devices[0].name
        n = ModelName("n")
        detail = ReplicaDetail(n, fact.digest, (device,), "ssd", 0, 0.0, 0.0, 0.0, (twice, twice))
        lie = replace(
            true,
            replicas=(ReplicaFact(n, fact.digest, "serving", 2, 0, 8),),
            detail=replace(true.detail, replicas=(detail,)),
        )
        assert told_of(a, b, lie)
        leader = a.daemon.plane.leader
        assert there not in (leader.plan(n).node, leader.plan(ModelName("k")).node)
        ways = leader.plan(ModelName("k")).ways
        assert [way.why for way in ways if way.node == there] == [CONTRADICTS]
        # Who asks is served all the same, and what the node says next is believed again.
        assert (await a.complete("n"))[0]
        for each in (a, b):
            await each.daemon.operator.unload("n")
        await eventually(lambda: leader.plan(n).node == there)


# --- loads ---


async def test_a_start_that_stalls_is_not_waited_for_by_who_comes_later(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "_STALLED_SECONDS", 0.5)
    async with (
        make_member("a", models={"m": {}}) as a,
        make_member("b", models={"m": {}}, join=a, **NEVER_READY) as b,
    ):
        await a.knows("m")
        stalls, well = b.node.identity.node, a.node.identity.node
        leader = a.daemon.plane.leader
        await eventually(lambda: len(leader.picture.view.nodes) == 2 and M in leader.picture.digests)
        a.daemon.agent.draining = True
        a.daemon.agent.changed()
        await eventually(lambda: leader.plan(M).node == stalls)
        stuck = asyncio.create_task(a.complete("m"))
        await eventually(b.replicas)
        a.daemon.agent.resume()
        await eventually(lambda: leader.plan(M).node == well, "waiting is expected to take longer")
        assert (await b.complete("m"))[1].node == well
        stuck.cancel()


# --- what cannot be ---


async def test_a_model_that_the_rules_allow_nowhere_is_refused_by_name(make_member: MakeMember) -> None:
    async with make_member("a", models={"m": {}}) as a:
        await started(a, "m")
        nowhere = replace(spec_of(a, "m"), placement={"gpu": "b200"})
        await a.node.control.propose(DeploymentPut(M, nowhere, None))
        leader = a.daemon.plane.leader
        await eventually(lambda: leader.plan(M).node == "")
        with pytest.raises(InsufficientCapacity, match="no node has the name and the labels"):
            await a.complete("m")
        assert a.replicas() == []


# --- what changes meanwhile ---


@pytest.mark.parametrize("change", ["rules", "bytes"])
async def test_a_deployment_that_changes_between_decision_and_order(
    make_member: MakeMember, change: str
) -> None:
    async with make_member("a", models={"m": {}, "n": {}, "other": {}}, **ONE_PLACE) as a:
        for name in ("m", "n", "other"):
            await started(a, name)
        await a.complete("n")
        await confirmed(a, Agreed.READY)
        async with no_orders(a):
            answer = asyncio.create_task(a.complete("m"))
            await confirmed(a)  # the victim's intent is gone, its order waits; nothing is agreed of `m`
            spec = spec_of(a, "m")
            if change == "rules":
                spec = replace(spec, placement={"gpu": "b200"})
            else:
                spec = replace(spec, digest=spec_of(a, "other").digest)
            await a.node.control.propose(DeploymentPut(M, spec, None))
        if change == "rules":
            with pytest.raises(InsufficientCapacity, match="no node has the name and the labels"):
                await answer
            await eventually(lambda: "m" not in a.replicas())
        else:  # it was asked of the bytes that the name stood for
            await asyncio.wait([answer])
        assert (await a.complete("other"))[0]
        await eventually(lambda: [each.deployment for each in intents(a)] == a.replicas() == ["other"])


# --- crowds ---


def awake(member: Member) -> list[tuple[str, NodeId]]:
    """Models whose replicas hold a device there, each with the node: one that sleeps holds none."""
    residences = member.daemon.agent.residences()
    held = (each.checkpoint.name for each in residences if each.state not in OFF_DEVICE)
    return [(name, member.node.identity.node) for name in held]


@pytest.mark.slow
async def test_a_thousand_cold_requests_for_two_hundred_models(make_member: MakeMember) -> None:
    names = [f"m{number}" for number in range(200)]
    places = {
        "devices": {"replicas_max": 8},
        "serving": {"residency_min": 0},
        "scheduler": {"residency_min": 0},
    }
    async with (
        make_member("a", models={name: {} for name in names}, **places) as a,
        make_member("b", join=a, **places) as b,
    ):
        for each in (a, b):
            await eventually(lambda each=each: len(each.models()) == 200, "both know all models")
        picture = a.daemon.plane.leader.picture
        await eventually(lambda: (len(picture.view.nodes), len(picture.digests)) == (2, 200))
        answers = await asyncio.gather(
            *((a, b)[number % 2].complete(names[number % 200]) for number in range(1000))
        )
        assert len(answers) == 1000
        assert all(text for text, _ in answers)
        await eventually(
            lambda: (
                sorted((each.deployment, each.node) for each in intents(a)) == sorted(awake(a) + awake(b))
            ),
            "books are right",
        )


# --- clocks ---


@pytest.mark.parametrize("seconds", [-7200.0, 7200.0])
async def test_a_wall_clock_that_jumps_changes_nothing(
    make_member: MakeMember, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    async with make_member("a") as a, make_member("b", models={"m": {}}, join=a) as b:
        before = await started(a, "m")
        true = time.time
        monkeypatch.setattr(time, "time", lambda: true() + seconds)
        after = a.daemon.plane.leader.plan(M)
        assert after.ways == before.ways
        assert (await a.complete("m"))[1].node == b.node.identity.node
        await confirmed(a, Agreed.READY)
        assert a.daemon.plane.leader.leads


@pytest.mark.slow
async def test_machines_that_slept_go_on(make_member: MakeMember, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their clocks stand ten minutes later all at once: every time-out has passed."""
    async with make_member("a") as a, make_member("b", models={"m": {}}, join=a) as b:
        await started(a, "m")
        await a.complete("m")
        await confirmed(a, Agreed.READY)
        true = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: true() + 600)
        await eventually(lambda: a.daemon.plane.leader.leads or b.daemon.plane.leader.leads)
        await eventually(lambda: not b.replicas(), "its keep-alive has passed")
        timing = (await a.complete("m"))[1]
        assert timing.node == b.node.identity.node
        plan = await started(a, "m")
        assert all(way.total_seconds < 60 for way in plan.ways[:1])


async def test_one_who_found_that_it_has_to_wait_and_leaves_keeps_nobody_from_looking(
    make_member: MakeMember,
) -> None:
    long = {"residency_min": 3600}
    async with make_member("a", models={"m": {}, "n": {}}, **{**ONE_PLACE, "scheduler": long}) as a:
        await planned(a, "n")
        await a.complete("m")
        leader = a.daemon.plane.leader
        await eventually(lambda: (leader.plan(M).ways or [None])[0].way == "use")
        question = Question(RequestId("q"), ModelName("n"), leader.picture.digests[ModelName("n")])
        first = asyncio.create_task(leader.place(question))
        reign = leader._reign
        assert reign is not None
        await eventually(lambda: reign.in_vain)
        first.cancel()
        await asyncio.wait([first])
        assert not reign.in_vain


# --- leaders that go ---


@pytest.mark.slow
async def test_what_was_asked_of_a_leader_that_goes_is_asked_of_the_next(make_member: MakeMember) -> None:
    """It had agreed on the start and ordered it, and the order was not looked at yet."""
    async with AsyncExitStack() as first:
        a = await first.enter_async_context(make_member("a"))
        async with make_member("b", models={"m": {}}, join=a) as b, make_member("c", join=a) as c:
            await c.knows("m")
            await three_vote(a)
            there = b.node.identity.node
            await eventually(lambda: len(a.daemon.plane.leader.picture.view.nodes) == 3)
            assert (await started(c, "m")).node == there
            changes = changes_of(b)
            async with no_orders(b):
                answer = asyncio.create_task(c.complete("m"))
                await confirmed(c, Agreed.REQUESTED)
                await first.aclose()
                await eventually(lambda: b.daemon.plane.leader.leads or c.daemon.plane.leader.leads)
                assert not answer.done()
            _, timing = await answer
            leads = b if b.daemon.plane.leader.leads else c
            assert timing.node == there
            assert timing.decision is not None
            assert timing.decision.leader == leads.node.identity.node
            assert timing.decision.refusals[0].startswith("a, which led in epoch ")
            await confirmed(c, Agreed.READY)
            assert changes == ["starting", "serving"]
            assert c.replicas() == []

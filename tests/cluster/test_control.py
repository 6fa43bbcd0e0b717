"""What ``ControlStore`` promises, whoever keeps it: one suite for this cluster's raft and for an etcd."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sllmd.cluster.catalogue import Catalogue, Command, apply
from sllmd.cluster.catalogue.commands import (
    ApiKeyDelete,
    ApiKeyPut,
    Body,
    DeploymentDelete,
    DeploymentPut,
    NodeAdmit,
    NodeCordon,
    NodeRemove,
    ReplicaGone,
    ReplicaIntent,
    ReplicaMove,
    ReplicaPlan,
    SettingPut,
    TokenConsume,
    TokenCreate,
)
from sllmd.cluster.catalogue.records import DeploymentSpec, ReplicaState
from sllmd.cluster.catalogue.results import Denied, Done, PlanResult, Reason, Result
from sllmd.cluster.control import ControlStore
from sllmd.cluster.etcd.control import EtcdControl
from sllmd.core.errors import ControlUnavailable, OutcomeUnknown
from sllmd.core.ids import Digest, ModelName, NodeId, ReplicaId
from tests.cluster.etcd_process import EtcdCluster, etcd_cluster, why_no_etcd
from tests.cluster.stores import (
    HASTY,
    PATIENT,
    SNAPSHOT_COMMANDS,
    Stores,
    etcd_stores,
    leader_of,
    raft_stores,
    same_catalogue,
)
from tests.waiting import PATIENCE_SECONDS, eventually

ETCD_SIZES = {"etcd-1": 1, "etcd-3": 3}
RAFT_NAMES = {"raft-1": "a", "raft-3": "abc"}


@pytest.fixture(scope="module", params=[*RAFT_NAMES, *ETCD_SIZES])
def keeper(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str | EtcdCluster]:
    if request.param in RAFT_NAMES:
        yield RAFT_NAMES[request.param]
        return
    reason = why_no_etcd()
    if reason is not None and os.environ.get("CI") != "true":
        pytest.skip(reason)
    with etcd_cluster(tmp_path_factory.mktemp(request.param), ETCD_SIZES[request.param]) as etcd:
        yield etcd


@pytest.fixture
def settings() -> dict[str, float]:
    """How long the nodes try."""
    return PATIENT


@pytest.fixture
async def stores(
    keeper: str | EtcdCluster, settings: dict[str, float], tmp_path: Path
) -> AsyncIterator[Stores]:
    if isinstance(keeper, str):
        async with raft_stores(tmp_path, keeper, **settings) as raft:
            yield raft
    else:
        async with etcd_stores(keeper, **settings) as etcd:
            yield etcd


def setting(key: str, value: bytes = b"", expected: int | None = None) -> SettingPut:
    return SettingPut(key, value, expected)


def value_of(catalogue: Catalogue, key: str) -> bytes | None:
    found = catalogue.settings.get(key)
    return found.value if found is not None else None


async def done(node: ControlStore, body: Body) -> Done:
    result = await node.propose(body)
    assert isinstance(result, Done)
    return result


async def test_what_one_node_puts_all_see(stores: Stores) -> None:
    for number, node in enumerate(stores.nodes):
        await done(node, setting(f"from {number}"))
        assert value_of(node.view().catalogue, f"from {number}") == b""
        for other in stores.nodes:
            await eventually(
                lambda other=other, number=number: f"from {number}" in other.view().catalogue.settings
            )


async def test_positions_grow_and_are_the_same_for_all(stores: Stores) -> None:
    before = stores.nodes[0].view().position
    await done(stores.nodes[-1], setting("x"))
    await same_catalogue(stores.nodes)
    positions = {node.view().position for node in stores.nodes}
    assert len(positions) == 1
    assert positions.pop() > before


async def test_views_grow_old_only_from_the_last_word_on(stores: Stores) -> None:
    await done(stores.nodes[0], setting("x"))
    for node in stores.nodes:
        await node.read()
        assert node.view().age_seconds >= 0
        await eventually(lambda node=node: node.view().age_seconds < 2, "it hears again and again")


async def test_compare_and_set(stores: Stores) -> None:
    first, second = stores.nodes[0], stores.nodes[-1]
    put = await done(first, setting("x", b"1", 0))
    denied = await second.propose(setting("x", b"2", 0))
    assert isinstance(denied, Denied)
    assert (denied.reason, denied.revision) == (Reason.CONFLICT, put.revision)
    await done(second, setting("x", b"3", put.revision))
    assert value_of(await first.read(), "x") == b"3"


async def test_of_many_that_set_the_same_one_wins(stores: Stores) -> None:
    racers = [node.propose(setting("x", str(n).encode(), 0)) for n, node in enumerate(stores.nodes * 8)]
    results = await asyncio.gather(*racers)
    assert sum(isinstance(result, Done) for result in results) == 1
    winner = next(n for n, result in enumerate(results) if isinstance(result, Done))
    assert value_of(await same_catalogue(stores.nodes), "x") == str(winner).encode()


async def test_a_read_sees_what_was_answered_anywhere_before(stores: Stores) -> None:
    for number in range(20):
        writer, reader = random.sample(stores.nodes, 2)
        await done(writer, setting("x", str(number).encode()))
        assert value_of(await reader.read(), "x") == str(number).encode()


async def test_all_nodes_apply_concurrent_commands_in_one_order(stores: Stores) -> None:
    results = await asyncio.gather(
        *(done(node, setting(f"{number}.{n}")) for number, node in enumerate(stores.nodes) for n in range(64))
    )
    revisions = [result.revision for result in results]
    assert len(set(revisions)) == len(revisions)
    catalogue = await same_catalogue(stores.nodes)
    assert sorted(one.revision for one in catalogue.settings.values()) == sorted(revisions)


@pytest.mark.slow
async def test_commands_are_carried_out_once_while_what_decides_dies_and_comes_back(stores: Stores) -> None:
    """Each answered use of a token counts once; one without an answer counts once or not at all."""
    await done(stores.nodes[0], TokenCreate("t", "hash", 1e12, 1_000_000))
    survivor = stores.nodes[-1]
    answered, unknown, ending = 0, 0, asyncio.Event()

    async def use() -> None:
        nonlocal answered, unknown
        while not ending.is_set():
            try:
                result = await survivor.propose(TokenConsume("t", "hash", 0))
                answered += isinstance(result, Done)
            except OutcomeUnknown:
                unknown += 1
            except ControlUnavailable:
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(use())
        for _ in range(2):
            before = answered
            await eventually(lambda before=before: answered > before + 50)
            await stores.disturb()
        before = answered
        await eventually(lambda: answered > before + 50)
        ending.set()
    token = (await same_catalogue(stores.nodes)).tokens.get("t")
    assert token is not None
    assert answered <= 1_000_000 - token.uses_left <= answered + unknown


async def test_orders_of_another_epoch_are_denied(stores: Stores) -> None:
    leader = await leader_of(stores.nodes)
    epoch = leader.leadership().epoch
    assert leader.view().catalogue.epoch == epoch
    assert isinstance(await leader.propose(setting("x"), epoch=epoch), Done)
    for wrong in (epoch - 1, epoch + 1):
        denied = await stores.nodes[-1].propose(setting("y"), epoch=wrong)
        assert isinstance(denied, Denied)
        assert denied.reason is Reason.STALE_EPOCH
    assert value_of(await leader.read(), "y") is None


async def test_everybody_knows_who_leads(stores: Stores) -> None:
    leader = await leader_of(stores.nodes)
    mine = leader.leadership()
    assert mine.leader is not None
    for node in stores.nodes:
        await eventually(lambda node=node: node.leadership().leader == mine.leader)
        assert node.leadership().epoch == mine.epoch
        assert node.leadership().is_me is (node is leader)


@pytest.mark.slow
async def test_a_dead_leader_is_followed_by_one_of_a_higher_epoch(stores: Stores, keeper: object) -> None:
    if keeper == RAFT_NAMES["raft-1"]:
        pytest.skip("one member: nobody to follow it")
    leader = await leader_of(stores.nodes)
    before = leader.leadership()
    await done(leader, setting("x"))
    watching = next(node for node in stores.nodes if node is not leader)
    seen = watching.leaderships()
    await stores.kill(leader)
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for leadership in seen:
            assert leadership.epoch >= before.epoch
            if leadership.leader not in (None, before.leader):
                break
    assert leadership.epoch > before.epoch
    successor = await leader_of(stores.nodes)
    assert successor.leadership().epoch > before.epoch
    denied = await successor.propose(setting("x"), epoch=before.epoch)
    assert isinstance(denied, Denied)
    assert denied.reason is Reason.STALE_EPOCH
    assert value_of(await successor.read(), "x") == b""


@pytest.mark.slow
async def test_a_leader_hands_over(stores: Stores, keeper: object) -> None:
    leader = await leader_of(stores.nodes)
    before = leader.leadership().epoch
    handed_over = await leader.hand_over()
    assert handed_over is (keeper != RAFT_NAMES["raft-1"])
    if handed_over:
        assert not leader.leadership().is_me
        assert (await leader_of(stores.nodes)).leadership().epoch > before


async def test_who_does_not_lead_cannot_hand_over(stores: Stores) -> None:
    leader = await leader_of(stores.nodes)
    assert not await next(node for node in stores.nodes if node is not leader).hand_over()
    assert leader.leadership().is_me


async def test_a_slow_reader_of_views_gets_the_newest(stores: Stores) -> None:
    views = stores.nodes[-1].views()
    for number in range(20):
        await done(stores.nodes[0], setting("x", str(number).encode()))
    newest = await stores.nodes[-1].read()
    async with asyncio.timeout(PATIENCE_SECONDS):
        view = await anext(views)
        while view.catalogue.revision < newest.revision:
            view = await anext(views)
    assert value_of(view.catalogue, "x") == b"19"


@pytest.mark.slow
@pytest.mark.parametrize("settings", [HASTY])
async def test_when_nobody_can_decide_views_go_on_and_the_rest_says_so(stores: Stores) -> None:
    await done(stores.nodes[0], setting("before"))
    await same_catalogue(stores.nodes)
    survivor = await stores.stop_deciding()
    # An etcd that lost its majority takes commands all the same; a raft member knows better.
    refusals = (
        (ControlUnavailable, OutcomeUnknown) if isinstance(survivor, EtcdControl) else ControlUnavailable
    )
    with pytest.raises(refusals) as refusal:
        await survivor.propose(setting("meanwhile"))
    with pytest.raises(ControlUnavailable):
        await survivor.read()
    view = survivor.view()
    assert value_of(view.catalogue, "before") == b""
    assert view.age_seconds > 1
    assert not survivor.leadership().is_me
    await stores.go_on()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await done(survivor, setting("after"))
                break
            except (ControlUnavailable, OutcomeUnknown):
                continue
    catalogue = await same_catalogue(stores.nodes)
    assert value_of(catalogue, "after") == b""
    if refusal.type is ControlUnavailable:
        assert value_of(catalogue, "meanwhile") is None, "what was never begun was carried out"


async def test_a_new_node_catches_up_from_a_snapshot(stores: Stores) -> None:
    await leader_of(stores.nodes)
    for number in range(SNAPSHOT_COMMANDS * 3):
        await done(stores.nodes[0], setting(f"{number % 50}", str(number).encode()))
    new = await stores.add()
    await eventually(lambda: new.view().catalogue.revision >= stores.nodes[0].view().catalogue.revision)
    await done(new, setting("from the new one"))
    catalogue = await same_catalogue(stores.nodes)
    assert len(list(catalogue.settings.items())) == 51


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
async def test_results_are_those_of_applying_the_same_commands(stores: Stores, seed: int) -> None:
    chance = random.Random(seed)
    await leader_of(stores.nodes)  # or its epoch would begin in between
    for node in stores.nodes:
        await done(node, setting("warm"))
    model = await same_catalogue(stores.nodes)
    for _ in range(150):
        body = any_body(chance, model)
        epoch = chance.choice([None, None, None, model.epoch, model.epoch + 1])
        result = await chance.choice(stores.nodes).propose(body, epoch=epoch)
        model = replace(model, revision=_before(result, model.revision))
        model, expected = apply(model, Command(body, epoch=epoch))
        assert result == expected
    found = await same_catalogue(stores.nodes)
    for table in ("nodes", "deployments", "names", "replicas", "used", "api_keys", "tokens", "settings"):
        assert getattr(found, table) == getattr(model, table)


def _before(result: Result, revision: int) -> int:
    """The number before the one that the command got: others (a new epoch) may have come between."""
    return result.revision - 1 if isinstance(result, Done | PlanResult) else revision


def any_body(chance: random.Random, model: Catalogue) -> Body:
    """Any command, on few names, so that it often meets what is there."""
    name, node = ModelName(chance.choice("mno")), NodeId(chance.choice("xyz"))
    replica = ReplicaId(chance.choice("rstu"))
    present = model.replicas.get(replica)
    expected = chance.choice([None, 0, 1, present.revision if present else 2])
    spec = DeploymentSpec(Digest("d"), "s", aliases=(ModelName(chance.choice("abm")),))
    known = present.revision if present and chance.random() < 0.8 else 1
    intents = (ReplicaIntent(replica, name, node, {"cuda:0": chance.randrange(60)}),)
    bodies: list[Body] = [
        NodeAdmit(node, chance.choice("xyz"), "h:1", "f", {"cuda:0": 100}, {}, None),
        NodeRemove(node, chance.choice([None, 1])),
        NodeCordon(node, chance.random() < 0.3),
        DeploymentPut(name, spec, chance.choice([None, 0])),
        DeploymentDelete(name, None),
        ReplicaPlan(intents),
        ReplicaMove(replica, chance.choice(list(ReplicaState)), known),
        ReplicaGone(replica, known, "test"),
        ApiKeyPut("k", "h", "infer", expected),
        ApiKeyDelete("k"),
        TokenCreate("t", "h", 10.0, 2),
        TokenConsume("t", chance.choice(["h", "g"]), chance.choice([1.0, 11.0])),
        setting(chance.choice("uvw"), bytes([chance.randrange(9)]), expected),
    ]
    weights = [3, 1, 2, 3, 1, 6, 4, 2, 1, 1, 1, 2, 2]
    return chance.choices(bodies, weights)[0]

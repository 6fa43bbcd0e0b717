"""Agreement over real connections: found, propose, read, watch, from every node."""

import asyncio
import time
from pathlib import Path

import pytest
import uvloop

from sllmd.cluster.catalogue import Command, pack_command
from sllmd.cluster.catalogue.commands import SettingPut
from sllmd.cluster.catalogue.results import Denied, Done, Reason
from sllmd.cluster.member.proposing import COMMAND_BYTES_MAX
from sllmd.core.errors import InvalidRequest
from sllmd.wire.identity import new_authority
from tests.cluster.member.nodes import a_cluster
from tests.waiting import eventually
from tests.wire.conftest import identity_file


@pytest.fixture
def event_loop_policy():
    return uvloop.EventLoopPolicy()


async def test_one_node_alone(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        (a,) = await cluster.found("a")
        assert isinstance(await a.put("x"), Done)
        assert a.keys == ["x"]
        assert a.control.leadership().leader == "a"
        assert a.control.view().age_seconds == 0
        assert [key for key, _ in (await a.control.read()).settings.items()] == ["x"]


async def test_any_node_proposes_and_sees_it_at_once(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        nodes = await cluster.found("abc")
        for number, node in enumerate(nodes * 3):
            result = await node.put(f"key.{number}")
            assert isinstance(result, Done)
            assert f"key.{number}" in node.keys
            reader = nodes[(number + 1) % 3]
            assert (await reader.control.read()).settings.get(f"key.{number}") is not None


async def test_many_at_once_from_each_of_three_are_carried_out_once(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        nodes = await cluster.found("abc")
        await asyncio.gather(*(node.put(f"{node.name}.{n}") for node in nodes for n in range(64)))
        last = await nodes[0].put("last")
        for node in nodes:
            await eventually(lambda node=node: "last" in node.keys)
            assert len(node.keys) == 3 * 64 + 1
        revisions = [one.revision for one in nodes[1].control.view().catalogue.settings.values()]
        assert len(set(revisions)) == len(revisions)
        assert isinstance(last, Done)
        assert last.revision == max(revisions)


async def test_watchers_see_changes_and_the_leader(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        a, b, c = await cluster.found("abc")
        views = b.control.views()
        await a.put("x")
        async for view in views:
            if view.catalogue.settings.get("x") is not None:
                break
        leader = await cluster.leader()
        other = next(node for node in (a, b, c) if node is not leader)
        seen = other.control.leaderships()
        before = leader.control.leadership().epoch
        assert await leader.control.hand_over()
        async for leadership in seen:
            if leadership.leader not in (None, leader.node):
                break
        assert leadership.epoch > before


async def test_an_order_of_another_epoch_is_refused(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        await cluster.found("abc")
        leader = await cluster.leader()
        epoch = leader.control.leadership().epoch
        done = await leader.control.propose(SettingPut("x", b"", None), epoch=epoch)
        assert isinstance(done, Done)
        denied = await leader.control.propose(SettingPut("x", b"", None), epoch=epoch - 1)
        assert isinstance(denied, Denied)
        assert denied.reason is Reason.STALE_EPOCH


async def test_a_change_that_is_too_large_to_travel_is_refused_and_stops_nobody(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        a, b, _ = await cluster.found("abc")
        with pytest.raises(InvalidRequest, match="over the limit"):
            await b.put("large", bytes(COMMAND_BYTES_MAX))
        assert isinstance(await b.put("almost", bytes(COMMAND_BYTES_MAX - 200)), Done)
        d = await cluster.add("d")
        await eventually(lambda: d.keys == ["almost"])
        await eventually(lambda: a.keys == ["almost"])


async def test_what_a_leader_cannot_read_is_not_taken_into_the_log(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        nodes = await cluster.found("abc")
        leader = await cluster.leader()
        other = next(node for node in nodes if node is not leader)
        connection = await other.connect(leader.node)
        before = leader.control.status().last_index
        good = pack_command(Command(SettingPut("x", b"", None)))
        assert await connection.call("control.propose", (b"nonsense", good)) == ("invalid", None)
        await eventually(lambda: other.keys == ["x"])
        assert leader.control.status().last_index == before + 1


async def test_the_same_over_tls(tmp_path: Path) -> None:
    authority = new_authority("test", now_seconds=time.time())
    files = tmp_path / "certificates"
    async with a_cluster(tmp_path, lambda name: identity_file(files, authority, name)) as cluster:
        nodes = await cluster.found("abc")
        await asyncio.gather(*(node.put(node.name) for node in nodes))
        for node in nodes:
            assert {key for key, _ in (await node.control.read()).settings.items()} == {"a", "b", "c"}


async def test_a_node_without_a_log_follows_proposes_and_reads(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        nodes = await cluster.found("abc")
        await nodes[0].put("before")
        d = await cluster.add("d")
        await eventually(lambda: "before" in d.keys)
        assert d.control.status() is None
        assert isinstance(await d.put("from d"), Done)
        assert "from d" in d.keys
        await nodes[1].put("after")
        assert (await d.control.read()).settings.get("after") is not None
        await eventually(lambda: d.control.view().age_seconds < 1)
        assert d.control.leadership().leader == (await cluster.leader()).node

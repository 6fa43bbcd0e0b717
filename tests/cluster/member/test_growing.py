"""Who keeps the log changes while the cluster works: it grows, loses nodes, lets nodes go."""

import asyncio
from pathlib import Path

import pytest
import uvloop

from sllmd.cluster.catalogue.commands import NodeRemove
from sllmd.cluster.journal import JournalSettings
from sllmd.core.ids import NodeId
from tests.cluster.member.nodes import RAFT, Cluster, Node, a_cluster
from tests.cluster.play import members
from tests.waiting import eventually


@pytest.fixture
def event_loop_policy():
    return uvloop.EventLoopPolicy()


async def grown(cluster: Cluster, names: str) -> Node:
    """A cluster that began with its first node."""
    (first,) = await cluster.found(names[0])
    for name in names:
        await first.admit(name)
        if name != names[0]:
            await cluster.add(name)
    return first


async def test_one_becomes_three_voters_two_standbys_and_the_rest_follow(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        a = await grown(cluster, "abcdef")
        await eventually(
            lambda: (len(a.control.membership.voters), len(a.control.membership.learners)) == (3, 2)
        )
        await a.put("x")
        for node in cluster.nodes.values():
            await eventually(lambda node=node: "x" in node.keys)
        (follower,) = set("abcdef") - set(a.control.membership.everyone)
        await eventually(lambda: cluster[follower].control.status() is None)
        await eventually(lambda: cluster[follower].control.membership == a.control.membership)


async def test_two_nodes_are_a_voter_and_a_standby(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        a = await grown(cluster, "ab")
        await eventually(lambda: a.control.membership == members("a", "b"))
        await eventually(lambda: cluster["b"].control.status() is not None)
        await cluster["b"].put("x")
        assert "x" in cluster["b"].keys


@pytest.mark.slow
async def test_a_dead_voter_is_replaced_and_comes_back_without_a_vote(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        a = await grown(cluster, "abcd")
        await eventually(lambda: len(a.control.membership.voters) == 3)
        victim = next(node for node in a.control.membership.voters if node != "a")
        await cluster[victim].stop()
        await eventually(lambda: victim not in a.control.membership.everyone)
        assert len(a.control.membership.voters) == 3
        await a.put("meanwhile")
        back = await cluster.add(victim)
        await eventually(lambda: "meanwhile" in back.keys)
        await eventually(lambda: victim in a.control.membership.learners)


async def test_a_removed_node_keeps_no_log_and_sees_it(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        a = await grown(cluster, "abc")
        await eventually(lambda: len(a.control.membership.voters) == 3)
        await a.control.propose(NodeRemove(NodeId("c"), None))
        await eventually(lambda: a.control.membership == members("a", "b"))
        c = cluster["c"]
        await eventually(lambda: c.control.status() is None)
        await a.put("x")
        await eventually(lambda: "x" in c.keys)


async def test_a_leader_of_two_retires_and_the_other_goes_on_alone(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        a = await grown(cluster, "ab")
        b = cluster["b"]
        await eventually(lambda: b.control.membership == members("a", "b"))
        assert await a.control.retire()
        await b.control.propose(NodeRemove(NodeId("a"), None))
        await a.stop()
        assert b.control.leadership().is_me
        assert b.control.membership == members("b")
        await b.put("alone")
        assert not await b.control.retire(), "there is nobody to leave the log with"


async def test_a_leader_that_is_removed_hands_over(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        a = await grown(cluster, "abcd")
        await eventually(lambda: len(a.control.membership.voters) == 3 and a.control.membership.learners)
        await a.control.propose(NodeRemove(NodeId("a"), None))
        await eventually(lambda: a.control.status() is None)
        leader = await cluster.leader()
        assert leader is not a
        assert sorted(leader.control.membership.voters) == ["b", "c", "d"]


async def test_a_node_far_behind_gets_a_snapshot_in_parts(tmp_path: Path) -> None:
    settings = RAFT.model_copy(update={"trailing_entries": 10, "chunk_bytes": 4096})
    journal = JournalSettings(segment_bytes=32_768, snapshot_entries=100)
    async with a_cluster(tmp_path, settings=settings, journal_settings=journal) as cluster:
        (a,) = await cluster.found("a")
        await a.admit("a")
        await asyncio.gather(*(a.put(f"{number:03}", bytes(500)) for number in range(300)))
        await eventually(lambda: a.control.status().commit_index >= 300)
        shell = a.control._seat.shell
        await eventually(lambda: shell.raft.log.base_index > 100)
        await a.admit("b")
        b = await cluster.add("b")
        await eventually(lambda: b.control.status() is not None and len(b.keys) == 300)
        status = await _followed(b, a)
        assert status.commit_index >= 300
        assert b.control._seat.shell.raft.log.snapshot is not None
        await a.put("after")
        await eventually(lambda: "after" in b.keys and b.control._seat.following is None)
        before = b.control.view()
        await b.stop()
        again = await cluster.add("b")
        await eventually(lambda: again.control.view().catalogue == before.catalogue)


async def _followed(node: Node, leader: Node):
    await eventually(lambda: node.control.status().applied_index >= leader.control.status().commit_index)
    return node.control.status()


async def test_a_follower_far_behind_gets_a_snapshot_and_goes_on_with_another_member(tmp_path: Path) -> None:
    settings = RAFT.model_copy(update={"trailing_entries": 10})
    journal = JournalSettings(snapshot_entries=50)
    async with a_cluster(tmp_path, settings=settings, journal_settings=journal) as cluster:
        a, b, c = await cluster.found("abc")
        await asyncio.gather(*(a.put(f"{number:03}", bytes(2000)) for number in range(200)))
        await eventually(lambda: a.control._seat.shell.raft.log.base_index > 50)
        d = await cluster.add("d")
        await eventually(lambda: len(d.keys) == 200)
        source = d.control._seat.following.source
        await cluster[source].stop()
        rest = next(node for node in (a, b, c) if node.node != source)
        await cluster.leader()
        await rest.put("after")
        await eventually(lambda: "after" in d.keys)


async def test_all_stop_and_start_again(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        nodes = await cluster.found("abc")
        await asyncio.gather(*(nodes[1].put(f"{number}") for number in range(50)))
        epoch = nodes[0].control.leadership().epoch
        for node in nodes:
            await node.stop()
        for name in "abc":
            await cluster.add(name, founding=name)  # what is in the journal counts, not this
        leader = await cluster.leader()
        assert len((await leader.control.read()).settings) == 50
        assert leader.control.leadership().epoch > epoch

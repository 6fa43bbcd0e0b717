"""Disks that fail and lie, majorities that are gone, answers that do not come."""

import asyncio
from pathlib import Path
from typing import ClassVar

import pytest
import uvloop

from sllmd.cluster.catalogue.results import Done
from sllmd.cluster.journal import DirectoryFiles
from sllmd.cluster.member.recovery import recover
from sllmd.core.errors import (
    ControlUnavailable,
    JournalCorrupt,
    JournalError,
    JournalFailed,
    OutcomeUnknown,
)
from sllmd.core.ids import NodeId
from tests.cluster.member.nodes import CONTROL, RAFT, Cluster, Node, a_cluster
from tests.cluster.play import members
from tests.waiting import eventually

HASTY = CONTROL.model_copy(update={"propose_seconds": 2, "read_seconds": 2})
"""For those who learn that nobody agrees."""


@pytest.fixture
def event_loop_policy():
    return uvloop.EventLoopPolicy()


class FailingFiles(DirectoryFiles):
    """A disk that fails when it is told to: EIO, or full."""

    failing: ClassVar[set[str]] = set()

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._name = directory.name

    def sync(self, name: str) -> None:
        if self._name in self.failing:
            raise JournalFailed(f"the journal cannot sync {name}: Input/output error")
        super().sync(name)

    def write(self, name: str, offset: int, data: bytes) -> None:
        if f"full {self._name}" in self.failing:
            raise JournalFailed(f"the journal cannot write {name}: No space left on device")
        super().write(name, offset, data)


@pytest.fixture
def failing():
    FailingFiles.failing = set()
    return FailingFiles.failing


@pytest.mark.parametrize("how", ["{}", "full {}"])
@pytest.mark.parametrize("whose", ["leader", "follower"])
async def test_a_disk_that_fails_takes_its_node_out_and_nothing_else(
    tmp_path: Path, failing: set[str], how: str, whose: str
) -> None:
    async with a_cluster(tmp_path, open_files=FailingFiles) as cluster:
        nodes = await cluster.found("abc")
        leader = await cluster.leader()
        follower = next(node for node in nodes if node is not leader)
        victim = leader if whose == "leader" else follower
        others = [node for node in nodes if node is not victim]
        await asyncio.gather(*(node.put(node.name) for node in nodes))
        await eventually(lambda: len(victim.keys) == 3)
        failing.add(how.format(victim.name))
        results = await asyncio.gather(*(node.put(f"after.{node.name}") for node in others))
        assert all(isinstance(result, Done) for result in results)
        await eventually(lambda: victim.control.lost_reason is not None)
        assert {"a", "b", "c"} <= set(victim.keys), "it shows what it knew"
        age = victim.control.view().age_seconds
        await eventually(lambda: victim.control.view().age_seconds > age + 0.05)
        with pytest.raises(ControlUnavailable, match="journal failed"):
            await victim.put("no")
        with pytest.raises(ControlUnavailable):
            await victim.control.read()
        assert not victim.control.leadership().is_me


async def test_a_corrupt_journal_refuses_to_start(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        (a,) = await cluster.found("a")
        for number in range(20):
            await a.put(str(number))
        await a.stop()
        segment = next((tmp_path / "a").glob("wal-*"))
        data = bytearray(segment.read_bytes())
        data[len(data) // 2] ^= 1
        segment.write_bytes(data)
        with pytest.raises(JournalCorrupt, match="corrupt") as raised:
            await cluster.add("a")
        assert raised.value.hint
        assert segment.read_bytes() == bytes(data), "nothing was cut or repaired"


async def _with_the_majority_gone(cluster: Cluster) -> Node:
    nodes = await cluster.found("abc")
    leader = await cluster.leader()
    await leader.put("before")
    await eventually(lambda: all("before" in node.keys for node in nodes))
    await asyncio.gather(*(node.stop() for node in nodes if node is not leader))
    return leader


@pytest.mark.slow
async def test_without_a_majority_what_was_begun_is_unknown_and_what_was_not_is_refused(
    tmp_path: Path,
) -> None:
    slow = RAFT.model_copy(update={"election_seconds_min": 8, "election_seconds_max": 10})
    async with a_cluster(tmp_path, control_settings=HASTY, settings=slow) as cluster:
        left = await _with_the_majority_gone(cluster)
        with pytest.raises(OutcomeUnknown):
            await left.put("taken into the log by a leader that nobody follows")
        await eventually(lambda: left.control.leadership().leader is None)
        with pytest.raises(ControlUnavailable):
            await left.put("never sent")
        with pytest.raises(ControlUnavailable):
            await left.control.read()
        assert left.keys == ["before"]
        assert left.control.view().age_seconds > 0


async def test_when_the_majority_is_gone_for_good_one_goes_on_alone(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        left = await _with_the_majority_gone(cluster)
        epoch = left.control.leadership().epoch
        with pytest.raises(JournalFailed, match="in use"):
            recover(tmp_path / left.name, left.node)
        await left.stop()
        done = recover(tmp_path / left.name, left.node)
        assert done.former == members("abc")
        assert done.epoch >> 32 == 1
        alone = await cluster.add(left.name)
        await cluster.leader()
        assert alone.control.membership == members(left.name)
        assert alone.control.leadership().epoch > done.epoch > epoch
        assert "before" in alone.keys
        assert isinstance(await alone.put("after"), Done)


@pytest.mark.slow
async def test_a_follower_of_the_old_cluster_follows_the_recovered_one(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        nodes = await cluster.found("abc")
        d = await cluster.add("d")
        await d.put("before")
        await eventually(lambda: "before" in nodes[0].keys)
        for node in nodes:
            await node.stop()
        recover(tmp_path / "a", NodeId("a"))
        a = await cluster.add("a")
        await cluster.leader()
        assert isinstance(await d.put("after"), Done)
        assert d.control.view().catalogue == a.control.view().catalogue


async def test_a_node_without_a_log_cannot_be_recovered(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="holds no log"):
        recover(tmp_path / "none", NodeId("a"))
    assert not (tmp_path / "none").exists()


async def test_one_node_alone_has_nobody_to_hand_over_to(tmp_path: Path) -> None:
    async with a_cluster(tmp_path) as cluster:
        (a,) = await cluster.found("a")
        assert not await a.control.hand_over()
        assert a.control.leadership().is_me

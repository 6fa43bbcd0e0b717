"""Endpoints that die or hold still, history that is compacted, an etcd that is not there yet."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from sllmd.cluster.catalogue import Catalogue
from sllmd.cluster.catalogue.commands import SettingPut, TokenConsume, TokenCreate
from sllmd.cluster.catalogue.results import Done
from sllmd.cluster.etcd.control import EtcdControl
from sllmd.cluster.etcd.failures import EtcdAway
from sllmd.cluster.etcd.requests import created, page, put, read_page, txn
from sllmd.cluster.etcd.settings import EtcdSettings
from sllmd.core.errors import ControlUnavailable, InvalidRequest
from sllmd.core.ids import NodeId
from sllmd.core.units import KIB, MIB
from tests.cluster.etcd_process import EtcdCluster, EtcdProcess
from tests.cluster.stores import SNAPSHOT_COMMANDS, etcd_stores, leader_of, same_catalogue
from tests.waiting import PATIENCE_SECONDS, eventually

pytestmark = pytest.mark.slow


def big(number: int, size_bytes: int) -> SettingPut:
    return SettingPut(f"big {number}", number.to_bytes(4, "big") * (size_bytes // 4), None)


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_one_of_three_endpoints_is_gone(three_etcds: EtcdCluster, how: str) -> None:
    """Nodes whose calls and watches went there go on elsewhere, for every one of the three."""
    async with etcd_stores(three_etcds, 2) as stores:
        await leader_of(stores.nodes)
        for member in three_etcds.members:
            getattr(member, how)()
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await asyncio.gather(
                        *(node.propose(SettingPut(f"{member.name}", b"", None)) for node in stores.nodes)
                    )
                    await same_catalogue(stores.nodes)
            finally:
                if how == "kill":
                    await asyncio.to_thread(member.start)
                else:
                    member.resume()
        assert len((await same_catalogue(stores.nodes)).settings) == 3


async def test_a_watch_that_is_cancelled_by_compaction_starts_over(etcd: EtcdCluster) -> None:
    async with etcd_stores(etcd, 1) as stores:
        (leader,) = stores.nodes
        await leader_of([leader])
        begin = leader.view().position
        for number in range(4 * SNAPSHOT_COMMANDS):
            await leader.propose(SettingPut(f"{number % 9}", b"", None))
        late = await stores.add()
        await eventually(lambda: late.view().position == leader.view().position)
        with pytest.raises(EtcdAway, match="history was compacted"):
            await late._log._follow(begin)
        await leader.propose(SettingPut("x", b"", None))
        assert len((await same_catalogue(stores.nodes)).settings) == 10


async def test_a_node_that_was_cut_off_while_history_was_compacted_catches_up(etcd: EtcdCluster) -> None:
    async with etcd_stores(etcd, 2) as stores:
        leader = await leader_of(stores.nodes)
        other = next(node for node in stores.nodes if node is not leader)
        await other.propose(SettingPut("before", b"", None))
        (cable,) = stores.cables[other]
        cable.block()
        waiting = asyncio.create_task(other.propose(SettingPut("meanwhile", b"", None)))
        for number in range(4 * SNAPSHOT_COMMANDS):
            await leader.propose(SettingPut(f"{number % 9}", b"", None))
        await cable.pull_out()
        await cable.plug_in()
        assert isinstance(await waiting, Done)
        catalogue = await same_catalogue(stores.nodes)
        assert sorted(key for key, _ in catalogue.settings.items()) == sorted(
            [*map(str, range(9)), "before", "meanwhile"]
        )


async def test_a_batch_that_arrives_again_after_it_was_forgotten(etcd: EtcdCluster) -> None:
    """Its key is gone with the snapshot that holds it, so etcd takes it again: nobody's catalogue does."""
    async with etcd_stores(etcd, 2) as stores:
        leader = await leader_of(stores.nodes)
        other = next(node for node in stores.nodes if node is not leader)
        await other.propose(TokenCreate("t", "h", 1e12, 100))
        gateway, keys = other._gateway, other._keys
        uses = asyncio.create_task(other.propose(TokenConsume("t", "h", 0)))
        await uses
        request = page(keys.commands, limit=1000)
        pairs = read_page(await gateway.call("/v3/kv/range", request)).pairs
        for number in range(2 * SNAPSHOT_COMMANDS):
            await leader.propose(SettingPut(f"{number % 9}", b"", None))

        async def forgotten() -> bool:
            left = read_page(await gateway.call("/v3/kv/range", request)).pairs
            return not {pair.key for pair in left} & {pair.key for pair in pairs}

        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await forgotten():
                await leader.propose(SettingPut("x", b"", None))
        for pair in pairs:
            steps = [put(pair.key, pair.value), put(keys.tip, b"")]
            await gateway.call("/v3/kv/txn", txn([created(pair.key, 0)], steps))
        await stores.add()
        token = (await same_catalogue(stores.nodes)).tokens.get("t")
        assert token is not None
        assert token.uses_left == 99


async def test_snapshots_of_many_pieces_and_pages_of_many_megabytes(etcd: EtcdCluster) -> None:
    async with etcd_stores(etcd, 1, snapshot_commands=1000, snapshot_bytes=12 * MIB) as stores:
        (leader,) = stores.nodes
        await leader_of([leader])
        with capture_logs() as logs:
            for number in range(20):
                await leader.propose(big(number, 700 * KIB))
            await eventually(lambda: any(line["event"] == "wrote a snapshot to etcd" for line in logs))
        assert max(line.get("bytes", 0) for line in logs) > 10 * MIB
        for number in range(10):
            await leader.propose(big(100 + number, 700 * KIB))
        new = await stores.add()
        await eventually(lambda: new.view().position == leader.view().position)
        assert len((await same_catalogue(stores.nodes)).settings) == 30


async def test_what_does_not_fit_etcd_is_refused_at_once(etcd: EtcdCluster) -> None:
    async with etcd_stores(etcd, 1) as stores:
        with pytest.raises(InvalidRequest, match="etcd takes"):
            await stores.nodes[0].propose(SettingPut("x", bytes(2 * MIB), None))


async def test_nodes_start_before_etcd(tmp_path: Path) -> None:
    member = EtcdProcess("late", tmp_path)
    settings = EtcdSettings(endpoints=(member.client_url,), propose_seconds=5.0, retry_seconds=0.05)
    node = await EtcdControl.start(node=NodeId("a"), cluster_id="c", settings=settings)
    try:
        with pytest.raises(ControlUnavailable):
            await node.propose(SettingPut("x", b"", None))
        assert node.view().age_seconds == float("inf")
        member.spawn([member])
        await asyncio.to_thread(member.wait)
        await eventually(lambda: node.leadership().is_me)
        assert isinstance(await node.propose(SettingPut("x", b"", None)), Done)
        assert node.view().catalogue.settings.get("x") is not None
    finally:
        await node.close()
        if member.runs:
            member.kill()


def keys(catalogue: Catalogue) -> set[str]:
    return {setting.key for setting in catalogue.settings.values()}


async def test_a_node_that_starts_while_etcd_is_away_knows_what_it_knew(tmp_path: Path) -> None:
    member = EtcdProcess("back", tmp_path)
    member.spawn([member])
    await asyncio.to_thread(member.wait)
    settings = EtcdSettings(endpoints=(member.client_url,), propose_seconds=30.0, retry_seconds=0.05)
    life: dict[str, Any] = {"node": NodeId("a"), "cluster_id": "c", "memory": tmp_path / "catalogue"}
    try:
        node = await EtcdControl.start(settings=settings, **life)
        await node.propose(SettingPut("x", b"1", None))
        await node.close()
        assert stat.S_IMODE(life["memory"].stat().st_mode) == 0o600
        member.kill()
        node = await EtcdControl.start(settings=settings, **life)
        assert keys(node.view().catalogue) == {"x"}
        assert node.view().age_seconds == float("inf")
        member.spawn([member])
        await asyncio.to_thread(member.wait)
        await eventually(lambda: node.view().age_seconds < 60)
        assert isinstance(await node.propose(SettingPut("y", b"2", None)), Done)
        await node.close()
        node = await EtcdControl.start(settings=settings, **life)
        assert keys(await node.read()) == {"x", "y"}
        await node.close()
        other = settings.model_copy(update={"incarnation": settings.incarnation + 1})
        life["memory"].write_bytes(life["memory"].read_bytes()[:-9])
        for later in (settings, other):  # a torn file, and what another incarnation remembers
            member.kill()
            node = await EtcdControl.start(settings=later, **life)
            assert not len(node.view().catalogue.settings)
            await node.close()
            member.spawn([member])
            await asyncio.to_thread(member.wait)
            async with asyncio.timeout(PATIENCE_SECONDS):
                node = await EtcdControl.start(settings=settings, **life)
                assert keys(await node.read()) == {"x", "y"}
                await node.close()
    finally:
        if member.runs:
            member.kill()


async def test_an_etcd_that_went_back_is_read_anew(tmp_path: Path) -> None:
    """It was made anew, or restored from an old backup: what was read from it before is worth nothing."""
    life: dict[str, Any] = {"node": NodeId("a"), "cluster_id": "c", "memory": tmp_path / "catalogue"}
    for name, settings_there in (("first", {"k0", "k1", "k2"}), ("second", set())):
        member = EtcdProcess(name, tmp_path)
        member.spawn([member])
        try:
            await asyncio.to_thread(member.wait)
            node = await EtcdControl.start(settings=EtcdSettings(endpoints=(member.client_url,)), **life)
            for key in settings_there:
                for _ in range(20):
                    await node.propose(SettingPut(key, b"", None))
            assert keys(await node.read()) == settings_there
            await node.close()
        finally:
            member.kill()


async def test_what_waits_when_a_node_stops_ends_and_says_how(etcd: EtcdCluster) -> None:
    async with etcd_stores(etcd, 1) as stores:
        (node,) = stores.nodes
        await node.propose(SettingPut("x", b"", None))
        waiting = [asyncio.create_task(node.propose(SettingPut(f"{n}", b"", None))) for n in range(5)]
        await asyncio.sleep(0)
        await node.close()
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, ControlUnavailable)
        with pytest.raises(ControlUnavailable):
            await node.propose(SettingPut("x", b"", None))
        with pytest.raises(ControlUnavailable):
            await node.read()

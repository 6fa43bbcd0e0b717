"""Who has which secret, what ends with a membership, whose clock is believed: whole nodes, real TLS."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from sllmd.cluster.catalogue.commands import ApiKeyPut, NodeRemove, SettingPut
from sllmd.cluster.node import CHUNK_PORT, ClusterNode
from sllmd.cluster.recovering import go_on_alone
from sllmd.core.errors import PeerRefused, RecordNotFound
from sllmd.core.ids import NodeId
from sllmd.wire.bulk.client import BulkAddress, BulkClient
from sllmd.wire.bulk.pipe import Piece
from sllmd.wire.cluster_key import ClusterKey
from sllmd.wire.identity import AUTHORITY_FILE
from sllmd.wire.rpc.joining import AUTHORITY_METHOD
from tests.cluster.nodes import Nodes, names, nodes, why_not
from tests.ports import free_ports
from tests.waiting import PATIENCE_SECONDS, eventually

FOLLOWERS = {"voters": {"standbys": 0}}
"""A second node neither votes nor keeps the log."""


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with nodes(tmp_path) as made:
        yield made


# --- the CA ---


async def test_who_is_not_to_keep_the_ca_lets_it_go_once_another_has_it(fleet: Nodes) -> None:
    """As after a demotion. Until somebody who is to keep it has it, it stays: it must not be lost."""
    one = await fleet.found("one", **FOLLOWERS)
    two = await fleet.join("two", one, **FOLLOWERS)
    await eventually(lambda: two.whereabouts.keepers() == [one.identity.node], "it knows who has the CA")
    authority = one.authority
    assert authority is not None
    two.home.save_authority(authority)
    two.authority = authority
    one.forget_authority()
    one.duties.tell()
    two.duties.tell()
    await eventually(lambda: one.home.authority() is not None, "who keeps the log has it")
    await eventually(lambda: two.authority is None, "who does not lets it go")
    assert two.home.authority() is None
    assert one.authority is not None
    assert one.authority.pin == authority.pin


async def test_a_removed_node_keeps_no_ca(fleet: Nodes) -> None:
    one = await fleet.found("one")
    two = await fleet.join("two", one)
    await eventually(lambda: two.authority is not None, "a standby has the CA")
    await one.control.propose(NodeRemove(two.identity.node, None))
    await asyncio.wait_for(asyncio.shield(two.failed), PATIENCE_SECONDS)
    assert two.authority is None
    assert two.home.authority() is None


def have_the_disk_refuse_to_forget(node: ClusterNode) -> None:
    """A directory cannot be unlinked, by root neither."""
    file = node.home.directory / AUTHORITY_FILE
    file.unlink()
    file.mkdir()


async def test_a_ca_that_the_disk_does_not_let_go_is_still_kept(fleet: Nodes) -> None:
    """Not half: who tells that it keeps the CA is asked for it, and asked to let it go again."""
    one = await fleet.found("one")
    have_the_disk_refuse_to_forget(one)
    with pytest.raises(OSError, match=AUTHORITY_FILE):
        one.forget_authority()
    assert one.authority is not None


async def test_a_removed_node_stops_whatever_its_disk_says(fleet: Nodes) -> None:
    one = await fleet.found("one")
    two = await fleet.join("two", one)
    await eventually(lambda: two.authority is not None, "a standby has the CA")
    have_the_disk_refuse_to_forget(two)
    with capture_logs() as lines:
        await one.control.propose(NodeRemove(two.identity.node, None))
        failure = await asyncio.wait_for(asyncio.shield(two.failed), PATIENCE_SECONDS)
    assert "was removed" in failure.message
    assert two.authority is None
    [told] = [line for line in lines if "CA is on this node's disk" in line["event"]]
    assert str(two.home.directory) in told["hint"]


# --- what a removal ends ---


class Zeros:
    """A checkpoint."""

    def pieces(self, _path: str, _offset_bytes: int, size_bytes: int) -> Sequence[Piece]:
        return [memoryview(bytes(size_bytes))]

    def close(self) -> None:
        """Nothing is open."""


async def refused(fetch: Callable[[], None]) -> PeerRefused:
    """What is open ends a moment after the removal, so that the node hears why."""
    while True:
        try:
            await asyncio.to_thread(fetch)
        except PeerRefused as error:
            return error


@pytest.mark.parametrize("encryption", ["on", "off"])
async def test_a_removed_nodes_open_chunk_connection_ends(fleet: Nodes, encryption: str) -> None:
    one = fleet.make("one", chunk_encryption=encryption)
    one.share = lambda _checkpoint: Zeros()
    await fleet.start(one)
    two = await fleet.join("two", one, chunk_encryption=encryption)
    address = BulkAddress(one.identity.node, "127.0.0.1", one.facts[CHUNK_PORT])
    client = BulkClient(address, two.settings.bulk, two.tls)

    def fetch() -> None:
        client.fetch("digest", "weights", 0, [memoryview(bytearray(10))], lambda _count: None)

    try:
        await asyncio.to_thread(fetch)
        await one.control.propose(NodeRemove(two.identity.node, None))
        await asyncio.wait_for(asyncio.shield(two.failed), PATIENCE_SECONDS)
        async with asyncio.timeout(PATIENCE_SECONDS):
            refusal = await refused(fetch)
        assert "was removed" in str(refusal)
    finally:
        await asyncio.to_thread(client.close)


# --- the cluster key ---


async def test_a_revoked_cluster_key_stays_revoked_whoever_restarts_with_it(fleet: Nodes) -> None:
    key = ClusterKey(bytes(range(32)))
    one = fleet.make("one")
    one.key = key
    await fleet.start(one)
    assert one.tokens is not None
    [shown] = one.tokens.list()
    await one.tokens.revoke(shown.token_id)
    await one.close()
    again = fleet.make("one")
    again.key = key
    await fleet.start(again)
    assert again.tokens is not None
    await eventually(lambda: again.control.leadership().is_me, "it leads")
    await again.duties.register_key()
    assert again.tokens.list() == []
    two = fleet.make("two", join=[again])
    two.key = key
    assert "not known here" in str(await why_not(two))
    with pytest.raises(RecordNotFound):
        await again.tokens.revoke(shown.token_id)


# --- clocks ---


@pytest.mark.parametrize(
    ("ahead_seconds", "said"),
    [(3 * 3600.0, "3h00m ahead of that of"), (-3 * 3600.0, "3h00m behind that of"), (-600.0, None)],
)
async def test_a_joiner_whose_clock_is_wrong_hears_by_how_much(
    fleet: Nodes, ahead_seconds: float, said: str | None
) -> None:
    one = await fleet.found("one")
    identity = one.home.identity()
    assert identity is not None

    async def tell(_body: Any, _caller: Any) -> dict[str, Any]:
        return {"ca": identity.ca_pem, "proof": b"", "now": time.time() - ahead_seconds}

    one.methods.unary(AUTHORITY_METHOD, tell, strangers=True)
    two = fleet.make("two", join=[one])
    two.token, _ = await one.tokens.create()  # type: ignore[union-attr]
    if said is None:
        await fleet.start(two)
        return
    refusal = await why_not(two)
    assert f"{said} {one.address}" in str(refusal)
    assert "NTP" in str(refusal.hint)


# --- after a recovery ---


async def test_a_follower_that_knew_more_than_what_was_saved_reads_what_is_agreed_now(fleet: Nodes) -> None:
    """The only voter comes back with an old disk and goes on alone; its log is shorter than what was seen."""
    one = await fleet.found("one", listen=f"127.0.0.1:{free_ports(3)}", **FOLLOWERS)
    two = await fleet.join("two", one, **FOLLOWERS)
    await eventually(lambda: names(two) == names(one) == {"one", "two"}, "it follows")
    saved = fleet.directory / "saved"
    await asyncio.to_thread(
        shutil.copytree, one.home.directory, saved, ignore=shutil.ignore_patterns("*.tmp")
    )
    for number in range(30):
        await one.control.propose(SettingPut("lost", bytes([number]), None))
    await eventually(lambda: "lost" in two.control.view().catalogue.settings, "it saw what will be lost")
    known = two.control.view().position
    where = one.address
    await one.close()
    await asyncio.to_thread(shutil.rmtree, one.home.directory)
    await asyncio.to_thread(shutil.move, saved, one.home.directory)
    go_on_alone(one.home, one.settings.journal)
    again = await fleet.start(fleet.make("one", listen=where, **FOLLOWERS))
    await eventually(lambda: two.control.leadership().leader == NodeId(one.identity.node), "it is found")
    await again.control.propose(SettingPut("after", b"", None))
    assert again.control.view().position < known
    settings = (await two.control.read()).settings
    assert "after" in settings
    assert "lost" not in settings


@pytest.mark.slow
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
async def test_who_kept_the_log_that_was_lost_keeps_the_new_one(fleet: Nodes, restarted: bool) -> None:
    """It has as agreed what the cluster that goes on never heard of: that journal is set aside."""
    where = f"127.0.0.1:{free_ports(3)}"
    one = await fleet.found("one", listen=where, **FOLLOWERS)
    two = await fleet.join("two", one)
    await eventually(lambda: names(two) == names(one) == {"one", "two"}, "it follows")
    await one.close()
    saved = fleet.directory / "saved"
    await asyncio.to_thread(shutil.copytree, one.home.directory, saved)
    one = await fleet.start(fleet.make("one", listen=where))
    await eventually(lambda: two.control.status() is not None, "it keeps the log")  # type: ignore[attr-defined]
    for number in range(30):
        await one.control.propose(SettingPut("lost", bytes([number]), None))
    await eventually(lambda: "lost" in two.control.view().catalogue.settings, "it has what will be lost")
    await one.close()
    if restarted:
        await two.close()
    await asyncio.to_thread(shutil.rmtree, one.home.directory)
    await asyncio.to_thread(shutil.move, saved, one.home.directory)
    go_on_alone(one.home, one.settings.journal)
    if restarted:
        two = await fleet.start(fleet.make("two"))
    again = await fleet.start(fleet.make("one", listen=where))
    await again.control.propose(SettingPut("after", b"", None))

    def keeps_the_new_log() -> bool:
        status, leads = two.control.status(), again.control.status()  # type: ignore[attr-defined]
        return (
            status is not None and status.epoch == leads.epoch and status.commit_index == leads.commit_index
        )

    await eventually(keeps_the_new_log, "it keeps the log that goes on")
    await eventually(lambda: "after" in two.control.view().catalogue.settings, "and sees what is agreed")
    assert "lost" not in two.control.view().catalogue.settings
    assert two.control.lost_reason is None  # type: ignore[attr-defined]
    assert two.home.journal_directory.with_name("journal-before-recovery-1").is_dir()


# --- what is known after a restart ---


@pytest.mark.slow
async def test_a_member_that_starts_without_the_others_does_not_take_its_journal_for_news(
    fleet: Nodes,
) -> None:
    """A key that was made while it was away is not in there: to know none is not to know that none is."""
    where = f"127.0.0.1:{free_ports(3)}"
    one = await fleet.found("one", listen=where)
    two = await fleet.join("two", one)
    await eventually(lambda: two.identity.node in two.control.membership.learners, "it keeps the log")
    assert two.heard.is_set()
    await two.close()
    await one.control.propose(ApiKeyPut("made", "0" * 64, "inference", None))
    await one.close()
    again = await fleet.start(fleet.make("two"))
    view = again.control.view()
    assert view.position
    assert not view.catalogue.api_keys
    assert not again.heard.is_set()
    await fleet.start(fleet.make("one", listen=where))
    await asyncio.wait_for(again.heard.wait(), PATIENCE_SECONDS)
    assert "made" in again.control.view().catalogue.api_keys

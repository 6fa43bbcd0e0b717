"""Founding, joining, coming back, leaving: whole nodes with real TLS in one process."""

from __future__ import annotations

import asyncio
import functools
import shutil
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sllmd.cluster import admitting, bootstrapping, joining, settings
from sllmd.cluster.catalogue.commands import NodeRemove
from sllmd.cluster.gossip.messages import Status
from sllmd.cluster.home import Belonging, Home
from sllmd.cluster.passport import KnownPeer
from sllmd.cluster.recovering import go_on_alone
from sllmd.core.errors import ConfigError, PeerError, PeerRefused, PeerUnreachable
from sllmd.core.ids import NodeId
from sllmd.wire.addresses import split_address
from sllmd.wire.cluster_key import ClusterKey
from sllmd.wire.identity import make_identity, make_request, new_key
from sllmd.wire.rpc import joining as wire_joining
from sllmd.wire.rpc.hello import Hello
from sllmd.wire.token import JoinToken, hash_secret
from tests.cluster.nodes import Nodes, names, nodes, why_not
from tests.ports import free_ports
from tests.waiting import PATIENCE_SECONDS, eventually


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Nodes]:
    async with nodes(tmp_path) as made:
        yield made


async def test_a_cluster_of_one_asks_for_nothing(fleet: Nodes) -> None:
    one = await fleet.found("one")
    assert one.founded
    assert one.authority is not None
    await eventually(lambda: names(one) == {"one"}, "it admits itself")
    await eventually(lambda: one.control.leadership().is_me, "it leads")


async def test_three_nodes_and_everybody_knows_everybody(fleet: Nodes) -> None:
    one = await fleet.found("one")
    two = await fleet.join("two", one)
    three = await fleet.join("three", two)
    for node in (one, two, three):
        await eventually(lambda node=node: names(node) == {"one", "two", "three"}, "all are admitted")
        await eventually(lambda node=node: len(node.members_here()) == 2, "all are members")
    assert {two.identity.cluster_id, three.identity.cluster_id} == {one.identity.cluster_id}
    answer = await three.call(one.identity.node, "cluster.keyring", None)
    assert list(answer) == one.keyring.ids()


async def test_a_node_without_the_ca_passes_a_join_on(fleet: Nodes) -> None:
    one = await fleet.found("one")
    two = await fleet.join("two", one, voters={"standbys": 0})
    await eventually(lambda: two.whereabouts.keepers() == [one.identity.node], "it knows who has the CA")
    two.authority = None
    three = await fleet.join("three", two)
    await eventually(lambda: "three" in names(three), "it was let in")


async def test_who_keeps_the_log_gets_the_ca(fleet: Nodes) -> None:
    one = await fleet.found("one")
    two = await fleet.join("two", one)
    await eventually(lambda: two.authority is not None, "a standby has the CA")
    assert two.home.authority() is not None
    await eventually(lambda: one.whereabouts.keepers() == [two.identity.node], "and says so")


async def test_nobody_else_gets_the_ca(fleet: Nodes) -> None:
    one = await fleet.found("one", voters={"standbys": 0})
    two = await fleet.join("two", one)
    with pytest.raises(PeerRefused, match="not to keep"):
        await two.call(one.identity.node, admitting.AUTHORITY_METHOD, None)


# --- tokens ---


async def test_without_a_token_nothing_begins(fleet: Nodes) -> None:
    one = await fleet.found("one")
    two = fleet.make("two", join=[one])
    error = await why_not(two)
    assert isinstance(error, ConfigError)
    assert "token create" in str(error.hint)
    assert two.home.belonging() is None, "and nothing is left of it"


async def test_a_used_token_is_no_good(fleet: Nodes) -> None:
    one = await fleet.found("one")
    token, _ = await one.tokens.create()  # type: ignore[union-attr]
    for name in ("two", "three"):
        node = fleet.make(name, join=[one])
        node.token = token
        if name == "two":
            await fleet.start(node)
        else:
            assert "was used up" in str(await why_not(node))
    await eventually(lambda: names(one) == {"one", "two"}, "nobody else is in")
    assert one.tokens.list() == []  # type: ignore[union-attr]


async def test_wrong_expired_and_revoked_tokens(fleet: Nodes) -> None:
    one = await fleet.found("one")
    assert one.tokens is not None
    good, _ = await one.tokens.create()
    expired, _ = await one.tokens.create(lifetime_seconds=0.001)
    revoked, _ = await one.tokens.create()
    await one.tokens.revoke(revoked.token_id)
    for token, reason in (
        (JoinToken(good.token_id, "0" * 32, good.ca_pin), "not known here"),
        (JoinToken("0" * 10, good.secret, good.ca_pin), "not known here"),
        (expired, "has expired"),
        (revoked, "not known here"),
        (JoinToken(good.token_id, good.secret, "ab" * 32), "not the one the join token was made for"),
    ):
        node = fleet.make("two", join=[one])
        node.token = token
        assert reason in str(await why_not(node))
    assert names(one) <= {"one"}
    node = fleet.make("two", join=[one])
    node.token = good
    await fleet.start(node)


async def test_no_secret_is_kept_where_it_need_not_be(fleet: Nodes) -> None:
    one = await fleet.found("one")
    token, _ = await one.tokens.create()  # type: ignore[union-attr]
    [record] = one.control.view().catalogue.tokens.values()
    assert record.sha256 == hash_secret(token.secret)
    node = fleet.make("two", join=[one])
    node.token = token
    await fleet.start(node)
    await one.close()
    kept = b"".join(file.read_bytes() for file in fleet.directory.rglob("*") if file.is_file())
    assert token.secret.encode() not in kept


async def test_a_join_whose_answer_is_lost_is_asked_again_and_uses_no_second_token(
    fleet: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node is let in, dies before it knows, and comes back with the same one-time token."""
    one = await fleet.found("one")
    token, _ = await one.tokens.create()  # type: ignore[union-attr]
    two = fleet.make("two", join=[one])
    two.token = token

    def die(*_arguments: object) -> None:
        raise ZeroDivisionError  # what it dies of does not matter

    with monkeypatch.context() as patch:
        patch.setattr(joining, "move_in", die)
        with pytest.raises(ZeroDivisionError):
            await two.start()
    belonging = two.home.belonging()
    assert belonging is not None
    assert belonging.joining
    again = fleet.make("two", join=[one])
    again.token = token
    await fleet.start(again)
    assert again.identity.node == belonging.node
    other = fleet.make("three", join=[one])
    other.token = token
    assert "was used up" in str(await why_not(other))


async def test_a_token_buys_no_members_id(fleet: Nodes) -> None:
    """Neither with the first question nor with one that looks like its repetition."""
    one = await fleet.found("one")
    token, _ = await one.tokens.create(uses=3)  # type: ignore[union-attr]
    thief = fleet.make("thief", join=[one])
    thief.token = token
    thief.home.save_belonging(Belonging(one.identity.node, "thief"))
    refusal = await why_not(thief)
    assert f"node {one.identity.node} is a member already" in str(refusal)
    thief.home.save_belonging(Belonging(NodeId("thief"), "thief"))
    honest = fleet.make("thief", join=[one])
    honest.token = token
    key = thief.home.joining_key()
    await fleet.start(honest)
    again = fleet.make("again", join=[one])
    again.token = token
    again.home.save_joining_key(str(key))
    again.home.save_belonging(Belonging(one.identity.node, "again"))
    assert f"node {one.identity.node} is a member already" in str(await why_not(again))
    await eventually(lambda: names(one) == {"one", "thief"}, "it is who it was")


async def test_a_node_on_its_way_in_never_founds(fleet: Nodes) -> None:
    two = fleet.make("two")
    two.home.begin("two")
    error = await why_not(two)
    assert "about to join" in str(error)


async def test_a_join_goes_on_through_others(fleet: Nodes) -> None:
    """One address never answers, one hangs up, one lets it in."""
    one = await fleet.found("one")

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    rude = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = rude.sockets[0].getsockname()[1]
    two = fleet.make("two", join=["127.0.0.1:1", f"127.0.0.1:{port}", one.address])
    two.token, _ = await one.tokens.create()  # type: ignore[union-attr]
    await fleet.start(two)
    rude.close()


async def test_a_cluster_that_is_away_is_waited_for(fleet: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "JOIN_RETRY_SECONDS_MIN", 0.05)
    one = await fleet.found("one", listen=f"127.0.0.1:{free_ports(3)}")
    token, _ = await one.tokens.create()  # type: ignore[union-attr]
    await one.close()
    two = fleet.make("two", join=[one])
    two.token = token
    starting = asyncio.create_task(fleet.start(two))
    asked = asyncio.create_task(asyncio.sleep(0.3))
    await asyncio.wait([starting, asked], return_when=asyncio.FIRST_COMPLETED)
    assert not starting.done()
    again = fleet.make("one", listen=one.address)
    await fleet.start(again)
    await starting
    assert two.identity.cluster_id == again.identity.cluster_id


# --- coming back ---


async def test_a_restart_rejoins_from_its_own_data_and_ignores_join(fleet: Nodes) -> None:
    one = await fleet.found("one")
    two = await fleet.join("two", one)
    await eventually(two.home.peers, "it knows where to come back to")
    await two.close()
    await eventually(
        lambda: one.membership.member(two.identity.node).status is Status.LEFT, "it said goodbye"
    )  # type: ignore[union-attr]
    assert names(one) == {"one", "two"}, "and stays a member"
    again = await fleet.start(fleet.make("two", join=["127.0.0.1:1"]))
    assert again.identity == two.identity
    await eventually(lambda: one.membership.member(two.identity.node).status is Status.ALIVE, "it is back")  # type: ignore[union-attr]
    await eventually(lambda: again.control.view().age_seconds < 5, "it follows")
    address = again.address
    await eventually(
        lambda: one.control.view().catalogue.nodes.get(again.identity.node).address == address,  # type: ignore[union-attr]
        "its new address is known",
    )


async def test_restarted_in_the_other_order_both_have_the_ports_that_they_had(
    fleet: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "RPC_PORT", free_ports(3))
    one = await fleet.found("one", listen="127.0.0.1", dev=True)
    two = await fleet.join("two", one, listen="127.0.0.1")
    where = [(node.address, node.membership.address) for node in (one, two)]
    await eventually(lambda: one.home.peers() and two.home.peers(), "they know where to come back to")
    await two.close()
    await one.close()
    (
        two.home.directory / "ports.json"
    ).unlink()  # an older release wrote none: others' are left alone all the same
    second = await fleet.start(fleet.make("two", listen="127.0.0.1", join=[one], dev=True))
    assert not {second.address, second.membership.address} & set(where[0])
    first = await fleet.start(fleet.make("one", listen="127.0.0.1", dev=True))
    assert (first.address, first.membership.address) == where[0]
    await eventually(lambda: first.members_here() and second.members_here(), "they found each other")
    await second.close()
    again = await fleet.start(fleet.make("two", listen="127.0.0.1", join=[one], dev=True))
    assert (again.address, again.membership.address) == (second.address, second.membership.address)


async def test_who_is_nowhere_where_they_were_finds_its_cluster_through_join(fleet: Nodes) -> None:
    one = await fleet.found("one", listen=f"127.0.0.1:{free_ports(3)}")
    two = await fleet.join("two", one, listen=f"127.0.0.1:{free_ports(3)}")
    await eventually(lambda: one.home.peers() and two.home.peers(), "they know where to come back to")
    await two.close()
    await one.close()
    with socket.create_server(split_address(one.address)), socket.create_server(split_address(two.address)):
        first = await fleet.start(fleet.make("one"))
        second = await fleet.start(fleet.make("two", join=["127.0.0.1:1", first]))
        await eventually(lambda: first.members_here() and second.members_here(), "they found each other")


async def test_an_address_that_is_ours_now_is_said_to_be_outdated(fleet: Nodes) -> None:
    one = await fleet.found("one")
    one.whereabouts.remembered = [KnownPeer(NodeId("two"), one.address, "")]
    with pytest.raises(PeerUnreachable, match="outdated"):
        await one.connection(NodeId("two"))


async def test_a_renamed_node_keeps_its_id_unless_the_name_is_taken(fleet: Nodes) -> None:
    one = await fleet.found("one")
    two = await fleet.join("two", one)
    await eventually(lambda: names(one) == {"one", "two"}, "both are admitted")
    await two.close()
    renamed = await fleet.start(fleet.make("deux", directory="two"))
    await eventually(lambda: names(one) == {"one", "deux"}, "its name changed")
    await renamed.close()
    clash = await fleet.start(fleet.make("one", directory="two"))
    await eventually(
        lambda: len([v for v in one.membership.members() if v.name == "one"]) == 2, "gossip sees both"
    )
    assert names(one) == {"one", "deux"}
    assert not clash.failed.done()


async def test_a_taken_name_is_refused_and_the_token_still_good(fleet: Nodes) -> None:
    one = await fleet.found("one")
    await eventually(lambda: names(one) == {"one"}, "it is admitted")
    token, _ = await one.tokens.create()  # type: ignore[union-attr]
    other = fleet.make("one", join=[one], directory="other")
    other.token = token
    error = await why_not(other)
    assert "has a node called one already" in str(error)
    assert "--name" in str(error.hint)
    better = fleet.make("better", join=[one], directory="other")
    better.token = token
    await fleet.start(better)


async def test_a_node_that_would_agree_with_somebody_else_is_refused(fleet: Nodes) -> None:
    one = await fleet.found("one")
    two = fleet.make("two", join=[one], store="etcd")
    two.token, _ = await one.tokens.create()  # type: ignore[union-attr]
    assert "agreement is kept by raft, not by etcd" in str(await why_not(two))
    assert len(one.tokens.list()) == 1, "and its token is still good"  # type: ignore[union-attr]


async def test_a_cloned_directory_stops(fleet: Nodes) -> None:
    one = await fleet.found("one")
    two = await fleet.join("two", one)
    await eventually(two.home.peers, "it knows where to come back to")
    shutil.copytree(fleet.directory / "two", fleet.directory / "clone")
    clone = await fleet.start(fleet.make("two", directory="clone"))
    error = await asyncio.wait_for(asyncio.shield(clone.failed), PATIENCE_SECONDS)
    assert "is a copy" in str(error)
    assert "never clone" in str(error.hint)
    assert not two.failed.done()


# --- going ---


async def test_a_removed_node_is_refused_and_stops(fleet: Nodes) -> None:
    one = await fleet.found("one")
    two = await fleet.join("two", one)
    await eventually(lambda: names(two) == {"one", "two"}, "it follows")
    await one.control.propose(NodeRemove(two.identity.node, None))
    error = await asyncio.wait_for(asyncio.shield(two.failed), PATIENCE_SECONDS)
    assert "was removed from the cluster" in str(error)
    await two.close()
    back = fleet.make("two", directory="two")
    await fleet.start(back)
    with pytest.raises(PeerRefused, match="was removed"):
        await back.call(one.identity.node, "cluster.keyring", None)


async def test_who_leaves_is_no_member_and_may_come_again_as_another(fleet: Nodes) -> None:
    one = await fleet.found("one")
    two = await fleet.join("two", one)
    await eventually(lambda: names(two) == {"one", "two"}, "it follows")
    await two.leave()
    await two.close()
    assert names(one) == {"one"}
    assert not two.failed.done()
    again = await fleet.join("two", one)
    assert again.identity.node != two.identity.node


# --- --dev ---


async def test_dev_nodes_need_no_token_and_no_certificates(fleet: Nodes) -> None:
    one = await fleet.found("one", dev=True)
    two = await fleet.join("two", one)
    await eventually(lambda: names(two) == {"one", "two"}, "both are admitted")
    assert one.tls is None
    assert not two.home.identity_file.exists()


async def test_dev_stays_on_this_machine(fleet: Nodes) -> None:
    one = fleet.make("one", dev=True, listen="0.0.0.0")
    assert "knows neither keys nor encryption" in str(await why_not(one))


async def test_a_token_does_not_open_a_dev_node(fleet: Nodes) -> None:
    one = await fleet.found("one", dev=True)
    two = fleet.make("two", join=[one])
    two.token = JoinToken("0" * 10, "0" * 32, "0" * 64)
    assert isinstance(await why_not(two), PeerRefused)


# --- times and versions ---


@pytest.mark.parametrize(("ahead_seconds", "good"), [(1800.0, True), (7200.0, False)])
async def test_the_signers_clock_may_be_ahead_by_minutes(
    fleet: Nodes, ahead_seconds: float, good: bool
) -> None:
    one = await fleet.found("one")
    two = await fleet.join("two", one)
    key, identity = new_key(), two.home.identity()
    assert one.authority is not None
    assert identity is not None
    request = make_request(two.identity.node, key)
    signed = one.authority.sign(request, two.identity.node, now_seconds=time.time() + ahead_seconds)
    await two.close()
    two.home.save_identity(make_identity(key, signed, identity.ca_pem))
    again = await fleet.start(fleet.make("two"))
    if good:
        assert list(await again.call(one.identity.node, "cluster.keyring", None)) == one.keyring.ids()
    else:
        with pytest.raises(PeerError):
            await again.call(one.identity.node, "cluster.keyring", None)


async def test_other_protocol_versions_are_refused_clearly(
    fleet: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await fleet.found("one")
    token, _ = await one.tokens.create()  # type: ignore[union-attr]
    for versions, word in (((7, 9), "is too old"), ((0, 0), "we are too old")):
        two = fleet.make("two", join=[one])
        two.token = token
        with monkeypatch.context() as patch:
            patch.setattr(wire_joining, "Hello", functools.partial(Hello, versions=versions))
            error = await why_not(two)
        assert "speaks protocol versions" in str(error)
        assert word in str(error)


async def test_a_certificate_is_renewed_and_used(fleet: Nodes) -> None:
    one = await fleet.found("one")
    two = await fleet.join("two", one)
    await eventually(lambda: names(two) == {"one", "two"}, "it follows")
    before = two.home.identity().fingerprint  # type: ignore[union-attr]
    two.authority = None
    await two.duties.renew()
    after = two.home.identity().fingerprint  # type: ignore[union-attr]
    assert after != before
    record = one.control.view().catalogue.nodes.get(two.identity.node)
    assert record is not None
    assert record.certificate_fingerprint == after
    await two.close()
    again = await fleet.start(fleet.make("two"))
    assert list(await again.call(one.identity.node, "cluster.keyring", None)) == one.keyring.ids()


# --- keys ---


@pytest.mark.slow
async def test_gossip_keys_are_replaced_while_all_talk_and_who_was_away_follows(fleet: Nodes) -> None:
    voters = {"settle_seconds": 0.3, "dead_seconds": 2.0}  # who was away keeps no log any more, and asks
    one = await fleet.found("one", voters=voters)
    two = await fleet.join("two", one, voters=voters)
    three = await fleet.join("three", one, voters=voters)
    await eventually(lambda: len(one.members_here()) == 2 and three.home.peers(), "all are members")
    await three.close()
    await eventually(lambda: len(one.members_here()) == 1, "one is away")
    old = one.keyring.ids()
    new = await two.keyrings.rotate()
    assert one.keyring.ids() == two.keyring.ids() == [new] != old
    assert Home(two.home.directory).keyring().ids() == [new]  # type: ignore[union-attr]
    back = await fleet.start(fleet.make("three"))
    assert back.home.keyring() is not None
    await eventually(lambda: back.keyring.ids() == [new], "it follows over TLS")
    await eventually(lambda: len(back.members_here()) == 2, "and gossip takes it back")


# --- the cluster key ---


def key() -> ClusterKey:
    return ClusterKey(bytes(range(32)))


async def test_the_cluster_key_lets_in_any_number(fleet: Nodes) -> None:
    one = fleet.make("one")
    one.key = key()
    await fleet.start(one)
    for name in ("two", "three"):
        node = fleet.make(name, join=[one])
        node.key = key()
        await fleet.start(node)
    await eventually(lambda: names(one) == {"one", "two", "three"}, "all are in")
    [shown] = one.tokens.list()  # type: ignore[union-attr]
    assert shown.used == 2


async def test_another_cluster_key_is_refused_before_anything_secret_is_said(fleet: Nodes) -> None:
    one = fleet.make("one")
    one.key = key()
    await fleet.start(one)
    two = fleet.make("two", join=[one])
    two.key = ClusterKey(bytes(32))
    assert "does not have this cluster key" in str(await why_not(two))


async def test_three_new_nodes_found_one_cluster_together(
    fleet: Nodes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bootstrapping, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(joining, "JOIN_RETRY_SECONDS_MIN", 0.05)
    addresses = [f"127.0.0.1:{free_ports(3)}" for _ in range(3)]
    made = [
        fleet.make(
            f"n{number}", listen=address, join=addresses, bootstrap_expect=3, secret_file=tmp_path / "key"
        )
        for number, address in enumerate(addresses)
    ]
    for node in made:
        node.key = key()
    starting = [asyncio.create_task(fleet.start(node)) for node in made[:2]]
    waiting = asyncio.create_task(asyncio.sleep(0.5))
    await asyncio.wait([*starting, waiting], return_when=asyncio.FIRST_COMPLETED)
    assert not any(one.done() for one in starting), "two of three found nothing"
    await asyncio.gather(*starting, fleet.start(made[2]))
    assert len({node.identity.cluster_id for node in made}) == 1
    assert [node.founded for node in made].count(True) == 1
    founder = next(node for node in made if node.founded)
    assert founder.identity.node == min(node.identity.node for node in made)


# --- the way out ---


@pytest.mark.slow
async def test_one_node_goes_on_when_the_others_are_lost_for_good(fleet: Nodes) -> None:
    one = await fleet.found("one")
    where = f"127.0.0.1:{free_ports(3)}"
    two = await fleet.join("two", one, listen=where)
    await eventually(lambda: two.authority is not None, "two keeps log and CA")
    await eventually(lambda: names(two) == {"one", "two"}, "and knows everybody")
    await two.close()
    await one.close()
    done = go_on_alone(two.home, two.settings.journal)
    assert done.lost == (one.identity.node,)
    assert not done.new_authority
    again = await fleet.start(fleet.make("two", listen=where))
    await eventually(lambda: names(again) == {"two"}, "the lost one is no member")
    assert one.identity.node in again.control.view().catalogue.removed
    three = await fleet.join("three", again)
    await eventually(lambda: names(three) == {"two", "three"}, "others may come")
    lost = await fleet.start(fleet.make("one"))
    error = await asyncio.wait_for(asyncio.shield(lost.failed), PATIENCE_SECONDS)
    assert "was removed" in str(error), "a lost one that comes back is told, and stops"


async def test_there_is_nothing_to_recover_without_a_cluster(fleet: Nodes) -> None:
    node = fleet.make("one")
    with pytest.raises(ConfigError, match="of no cluster"):
        go_on_alone(node.home, node.settings.journal)

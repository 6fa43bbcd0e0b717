"""Members over real sockets, in one process: joining, telling, watching, ports, bad days of the network."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from sllmd.cluster.gossip import GossipSettings, Meta
from sllmd.cluster.gossip.messages import Alive, Ping, Status, pack_packet
from sllmd.cluster.membership import Membership
from sllmd.cluster.roster import Identity, Listen, MemberView
from sllmd.core.errors import ConfigError
from sllmd.core.ids import NodeId
from sllmd.wire.addresses import split_address
from sllmd.wire.seal import Drop, Keyring, Sealer
from tests.ports import free_ports
from tests.waiting import PATIENCE_SECONDS, eventually

KEY = bytes(range(32))
META = Meta("127.0.0.1:8344", "0.1.0", ("server",))
QUICK = GossipSettings(gossip_seconds=0.02, dead_ping_seconds=0.2, late_seconds_max=5)
"""What is told arrives soon; nobody is suspected because the machine is busy."""
HASTY = QUICK.model_copy(update={"probe_seconds": 0.2, "probe_timeout_seconds": 0.1})
"""Where somebody has to die."""
HAS_IPV6 = socket.has_ipv6 and Path("/proc/net/if_inet6").exists()
MakeMember = Callable[..., Awaitable[Membership]]


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """The daemon's loop, and the one whose debug messages people know how to read."""
    return request.param()


@pytest.fixture
async def make_member() -> AsyncIterator[MakeMember]:
    made: list[Membership] = []

    async def make(name: str, **options: Any) -> Membership:
        membership = await Membership.start(
            Identity(options.get("cluster", "test"), NodeId(options.get("node", name)), name),
            Keyring([options.get("key", KEY)]),
            options.get("meta", META),
            listen=options.get("listen", Listen(port=0)),
            settings=options.get("settings", QUICK),
        )
        made.append(membership)
        return membership

    yield make
    for membership in made:
        await membership.close()


async def until_change(membership: Membership, true: Callable[[], bool]) -> None:
    """Every change rings: what is true only for a moment is seen."""
    changes = membership.changed()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not true():
            await anext(changes)


def statuses(membership: Membership) -> dict[str, Status]:
    return {view.name: view.status for view in membership.members()}


async def cluster(make_member: MakeMember, *names: str, **options: Any) -> list[Membership]:
    members = [await make_member(name, **options) for name in names]
    for member in members[1:]:
        (attempt,) = await member.join([members[0].address])
        assert attempt.joined
    for member in members:
        await until_change(member, lambda member=member: len(member.members()) == len(names))
    return members


async def test_a_cluster_of_one_asks_for_nothing(make_member: MakeMember) -> None:
    before = time.time()
    one = await make_member("one")
    (view,) = one.members()
    assert view == MemberView(
        NodeId("one"), "one", one.address, Status.ALIVE, view.since_seconds, 0, META, (), is_me=True
    )
    assert before - 1 <= view.since_seconds <= time.time() + 1
    await asyncio.wait_for(one.leave(), PATIENCE_SECONDS)


async def test_members_join_through_any_of_them_and_all_see_all(make_member: MakeMember) -> None:
    one, two, three = await cluster(make_member, "one", "two", "three")
    four = await make_member("four")
    assert (await four.join([three.address]))[0].joined
    for member in (one, two, three, four):
        await until_change(member, lambda member=member: len(member.members()) == 4)
        assert set(statuses(member).values()) == {Status.ALIVE}


async def test_what_a_member_tells_of_itself_reaches_all(make_member: MakeMember) -> None:
    one, two, three = await cluster(make_member, "one", "two", "three")
    assert two.leader_hint() is None
    one.tell(Meta("127.0.0.1:8344", "0.1.0", ("server", "voter"), epoch=4, leader=NodeId("one")))
    three.tell(Meta("127.0.0.1:8344", "0.1.0", ("server",), epoch=5, leader=NodeId("three")))
    for member in (one, two, three):
        await until_change(member, lambda member=member: member.leader_hint() == (5, NodeId("three")))
    await until_change(two, lambda: two.member(NodeId("one")).meta.roles == ("server", "voter"))  # type: ignore[union-attr]


async def test_meta_that_is_too_large_is_refused_and_changes_nothing(make_member: MakeMember) -> None:
    one = await make_member("one")
    with pytest.raises(ConfigError, match="512 are allowed"):
        one.tell(Meta("x" * 600, "0.1.0"))
    assert one.meta == META


async def test_who_closes_without_a_word_is_suspected_and_dies_who_leaves_has_left(
    make_member: MakeMember,
) -> None:
    one, two, three, four = await cluster(make_member, "one", "two", "three", "four", settings=HASTY)
    changes = one.changed()
    await asyncio.wait_for(four.leave(), PATIENCE_SECONDS)
    await until_change(one, lambda: statuses(one)["four"] is Status.LEFT)
    assert one.peers() == [three.address, two.address]
    await three.close()
    seen = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not seen or seen[-1].status is not Status.DEAD:
            change = await anext(changes)
            if change.member is not None and change.member.name == "three":
                seen.append(change.member)
    assert [view.status for view in seen[-2:]] == [Status.SUSPECT, Status.DEAD]
    assert seen[-2].suspected_by
    assert statuses(two)["two"] is Status.ALIVE


async def test_nodes_on_one_machine_find_ports_by_themselves(make_member: MakeMember) -> None:
    first = await make_member("one")
    port = split_address(first.address)[1]
    second = await make_member("two", listen=Listen(port=port))
    assert split_address(second.address)[1] > port
    with pytest.raises(ConfigError, match=f"cannot bind port {port}"):
        await make_member("three", listen=Listen(port=port, port_exactly=True))


async def test_bind_and_advertised_addresses_are_separate(make_member: MakeMember) -> None:
    one = await make_member("one", listen=Listen("0.0.0.0", 0, advertise_host="127.0.0.1"))
    two = await make_member("two")
    assert one.address.startswith("127.0.0.1:")
    assert (await two.join([one.address]))[0].joined
    await until_change(one, lambda: statuses(one).get("two") is Status.ALIVE)


async def test_ipv6(make_member: MakeMember) -> None:
    if not HAS_IPV6:
        pytest.skip("no IPv6 on this machine")
    one, two = await cluster(make_member, "one", "two", listen=Listen("::1", 0))
    assert one.address.startswith("[::1]:")
    await until_change(two, lambda: statuses(two).get("one") is Status.ALIVE)


async def test_a_name_is_looked_up(make_member: MakeMember) -> None:
    one, two = await make_member("one"), await make_member("two")
    port = split_address(one.address)[1]
    assert (await two.join([f"localhost:{port}"]))[0].joined
    (attempt,) = await two.join(["no-such-host.invalid:1"])
    assert attempt.reason is not None
    assert "cannot look up no-such-host.invalid" in attempt.reason


async def test_joining_waits_for_a_cluster_to_come(make_member: MakeMember) -> None:
    port = free_ports()
    two = await make_member("two")
    with capture_logs() as logs:
        joining = asyncio.create_task(two.join_for_ever([f"127.0.0.1:{port}"]))
        done, _ = await asyncio.wait([joining], timeout=0.5)
        assert not done
    assert logs[0]["event"] == "join failed"
    await make_member("one", listen=Listen(port=port, port_exactly=True))
    attempt = await asyncio.wait_for(joining, PATIENCE_SECONDS)
    assert attempt.joined


@pytest.mark.parametrize(
    ("options", "drop"),
    [({"key": bytes(32)}, Drop.UNKNOWN_KEY), ({"cluster": "another"}, Drop.OTHER_CLUSTER)],
)
async def test_strangers_do_not_get_in(make_member: MakeMember, options: dict[str, Any], drop: Drop) -> None:
    one = await make_member("one")
    stranger = await make_member("stranger", **options)
    (attempt,) = await stranger.join([one.address])
    assert not attempt.joined
    assert one.dropped == {drop: 1}
    assert list(statuses(one)) == ["one"]


async def test_a_cloned_directory(make_member: MakeMember) -> None:
    one, two = await cluster(make_member, "one", "two")
    clone = await make_member("one")
    await clone.join([two.address])
    assert await asyncio.wait_for(clone.id_taken, PATIENCE_SECONDS) == one.address
    await clone.close()
    assert not one.id_taken.done()
    assert statuses(two) == {"one": Status.ALIVE, "two": Status.ALIVE}


async def test_a_member_that_sends_nonsense_is_ignored(make_member: MakeMember) -> None:
    one, two = await cluster(make_member, "one", "two")
    boxes = Sealer(one.keyring, "test")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as rogue, capture_logs() as logs:
        for contents in (b"", b"\xc1", b"\x91\x92\x01\x02", os.urandom(300)):
            rogue.sendto(boxes.seal(contents), split_address(one.address))
        rogue.sendto(
            boxes.seal(pack_packet([Ping(7, NodeId("two"), NodeId("one"))])), split_address(one.address)
        )
        rogue.setblocking(False)
        await asyncio.wait_for(asyncio.get_running_loop().sock_recv(rogue, 2000), PATIENCE_SECONDS)
    assert one.dropped == {Drop.MALFORMED: 4}
    assert {entry["event"] for entry in logs if entry["log_level"] == "warning"} == {
        "a member sent what is no message"
    }
    assert statuses(one)["two"] is Status.ALIVE
    assert not two.dropped


async def test_a_member_with_an_address_that_is_none_harms_nobody(make_member: MakeMember) -> None:
    addresses = ["nonsense", "localhost:80", "[::1]:70000", "no such host:1", "\0:1"]
    await asyncio.gather(*(_harms_nobody(make_member, address) for address in addresses))


async def _harms_nobody(make_member: MakeMember, address: str) -> None:
    one, two = await cluster(make_member, "one", "two", settings=HASTY)
    claim = Alive(NodeId("odd"), 0, "odd", address, 1, 1, b"")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as odd:
        odd.sendto(Sealer(one.keyring, "test").seal(pack_packet([claim])), split_address(one.address))
    await until_change(two, lambda: statuses(two).get("odd") is Status.DEAD)
    await eventually(lambda: statuses(one) | {"odd": Status.DEAD} == statuses(two), "no other harm is done")
    one.tell(Meta("127.0.0.1:8344", "0.1.0", epoch=3, leader=NodeId("one")))
    await until_change(two, lambda: two.leader_hint() == (3, NodeId("one")))


async def test_a_slow_reader_of_changes_gets_the_newest_of_each(make_member: MakeMember) -> None:
    one = await make_member("one")
    changes = one.changed()
    for epoch in range(1, 200):
        one.tell(Meta("127.0.0.1:8344", "0.1.0", epoch=epoch))
    change = await asyncio.wait_for(anext(changes), PATIENCE_SECONDS)
    assert change.member is not None
    assert change.member.meta is not None
    assert change.member.meta.epoch == 199
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(changes), 0.05)


async def test_keys_are_rotated_while_everybody_talks(make_member: MakeMember) -> None:
    members = await cluster(make_member, "one", "two", "three")
    new = Keyring.new_key()
    for member in members:
        member.keyring.install(new)
    for member in members:
        member.keyring.use(member.keyring.ids()[-1])
    members[0].tell(Meta("127.0.0.1:8344", "0.1.0", epoch=1, leader=NodeId("one")))
    for member in members:
        await until_change(member, lambda member=member: member.leader_hint() == (1, NodeId("one")))
    for member in members:
        member.keyring.remove(member.keyring.ids()[-1])
    members[1].tell(Meta("127.0.0.1:8344", "0.1.0", epoch=2, leader=NodeId("two")))
    for member in members:
        await until_change(member, lambda member=member: member.leader_hint() == (2, NodeId("two")))
        assert not member.dropped
        assert set(statuses(member).values()) == {Status.ALIVE}

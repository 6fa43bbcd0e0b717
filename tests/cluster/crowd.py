"""A thousand members that are not there: a real member is told of them as if it had met them."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from sllmd.cluster.gossip import Meta, pack_meta
from sllmd.cluster.gossip.messages import Alive, Exchange, Fact, Ping, Status, pack_packet, pack_stream
from sllmd.core.ids import NodeId
from sllmd.wire.addresses import split_address
from sllmd.wire.inquiry import inquire
from sllmd.wire.seal import Keyring, Sealer

META = pack_meta(Meta("10.0.0.1:8344", "0.1.0", ("server", "voter"), 7, NodeId("leader")))
AT_ONCE = 50
"""The system keeps no thousand packets for a process."""


async def introduce(
    keyring: Keyring,
    cluster: str,
    node: NodeId,
    address: str,
    count: int,
    *,
    taken: Callable[[int], Awaitable[object]],
) -> None:
    """A table of ``count`` over the stream, and a packet from each, so that each is a known sender, too.

    ``taken`` waits until the member has read so many packets.
    """
    claims = [
        Alive(NodeId(f"{n:032x}"), 1, f"server-{n}", f"10.0.{n // 250}.{n % 250}:8345", 1, 1, META)
        for n in range(count)
    ]
    facts = tuple(Fact(claim, 1, Status.ALIVE) for claim in claims[1:])
    exchange = pack_stream(Exchange(claims[0], True, facts))
    await inquire(Sealer(keyring, cluster), address, exchange, bytes_max=4_000_000, timeout_seconds=20)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for number, claim in enumerate(claims, start=1):
            packet = pack_packet([Ping(1, claim.node, node)])
            sender.sendto(Sealer(keyring, cluster).seal(packet), split_address(address))
            if number % AT_ONCE == 0:
                await taken(number)

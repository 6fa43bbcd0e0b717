"""Where a node listens: which ports it tries, and which it leaves to others."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from sllmd.cluster.home import LastPorts
from sllmd.cluster.passport import KnownPeer
from sllmd.cluster.roster import Listen
from sllmd.cluster.settings import ClusterSettings
from sllmd.core.errors import ConfigError
from sllmd.wire.addresses import is_loopback, split_address
from sllmd.wire.ports import candidates
from sllmd.wire.route import advertised_host


@dataclass(frozen=True, slots=True)
class Listening:
    """On one host; ports to try in turn."""

    host: str
    advertised_host: str
    calls: list[int]
    chunks: list[int]
    gossip: Listen


def choose_ports(
    settings: ClusterSettings, last: LastPorts, remembered: Sequence[KnownPeer], *, dev: bool
) -> Listening:
    """First those of last time. Not those on this machine that others are remembered at: who restarts first
    must not take them. Raises ConfigError for --dev on an address that others reach."""
    ports = settings.ports([peer.rpc for peer in remembered])
    if dev and not is_loopback(ports.host):
        raise ConfigError(
            f"--dev does not listen on {ports.host}: it knows neither keys nor encryption",
            hint="start without --dev to meet other machines",
        )
    advertise = settings.advertise or None
    host = advertised_host(ports.host, advertise)
    others = [address for peer in remembered for address in (peer.rpc, peer.gossip) if address]
    taken = [port for at, port in map(split_address, others) if at == host]
    avoid = frozenset([*taken, last.rpc, last.gossip, last.chunks])
    tried = functools.partial(candidates, exactly=ports.exactly, avoid=avoid)
    gossip = Listen(ports.host, ports.gossip, ports.exactly, advertise, last.gossip, avoid)
    calls, chunks = tried(ports.rpc, last=last.rpc), tried(ports.chunks, last=last.chunks)
    return Listening(ports.host, host, calls, chunks, gossip)

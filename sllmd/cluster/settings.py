"""What an owner may decide about the cluster: where to listen, whom to join, who keeps agreement. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from sllmd.cluster.etcd.settings import EtcdSettings
from sllmd.cluster.gossip.settings import GossipSettings
from sllmd.cluster.journal.settings import JournalSettings
from sllmd.cluster.member.settings import ControlSettings, VoterSettings
from sllmd.cluster.raft.settings import RaftSettings
from sllmd.core.errors import ConfigError
from sllmd.core.frozen import Frozen
from sllmd.wire.addresses import is_loopback, split_address
from sllmd.wire.bulk.settings import BulkSettings, ChunkSettings
from sllmd.wire.rpc.settings import RpcSettings

AUTO, LOOPBACK, ANYWHERE = "auto", "127.0.0.1", "0.0.0.0"  # noqa: S104  with TLS
RPC_PORT = 8344
"""Where nodes call each other unless told otherwise, and what ``--join host`` means."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a node listens for others. ``exactly``: these ports and no others; else the next free ones."""

    host: str
    rpc: int
    exactly: bool

    @property
    def gossip(self) -> int:
        """The port after that of calls."""
        return self.rpc + 1 if self.rpc else 0

    @property
    def chunks(self) -> int:
        """The port after that of gossip."""
        return self.rpc + 2 if self.rpc else 0


def join_address(address: str) -> str:
    """What to type behind ``--join``: without the port where it is the usual one."""
    _, port = split_address(address)
    return address.removesuffix(f":{port}") if port == RPC_PORT else address


class ClusterSettings(Frozen):
    """``[cluster]``: this node among others. Traffic between nodes is always encrypted, except by --dev."""

    listen: str = AUTO
    """IP address on which other nodes reach this one; ``0.0.0.0`` or ``::`` for all of this machine's;
    ``auto``: loopback until this node joins others on other machines, then all. With ``:PORT`` behind it,
    calls come in on exactly that port, gossip (UDP and TCP) on the next, chunks on the one after; without,
    those of last time, or else the first free ones from 8344 that no other member had; with ``:0`` any free
    ones."""
    advertise: str = ""
    """IP address to tell other nodes, where it is another one than that listened on; found out if empty."""
    join: tuple[str, ...] = ()
    """``host`` or ``host:port`` of members to join through. A node that is a member
    already joins no other cluster by it; it looks there for its own when it finds nobody where they were."""
    token_file: Path | None = None
    """Holds a join token; ``--token`` and SLLMD_TOKEN come before it."""
    secret_file: Path | None = None
    """Holds the cluster key that a scripted fleet shares: whoever has it may join, as often as it likes."""
    bootstrap_expect: int = Field(default=0, ge=0, le=64)
    """So many nodes that are all new, with the same ``secret_file`` and each other in ``join``, found the
    cluster together; 0: a node without ``join`` founds one alone."""
    store: Literal["raft", "etcd"] = "raft"
    """Who keeps what the nodes agree on: they themselves, or an etcd. Every node must say the same."""
    chunk_encryption: Literal["on", "off"] = "on"
    """``off``: weights travel readable for everybody on the network, tagged so that nobody can change them,
    at about twice the speed per core. For networks that are trusted with the weights."""
    rpc: RpcSettings = RpcSettings()
    gossip: GossipSettings = GossipSettings()
    raft: RaftSettings = RaftSettings()
    journal: JournalSettings = JournalSettings()
    voters: VoterSettings = VoterSettings()
    control: ControlSettings = ControlSettings()
    etcd: EtcdSettings = EtcdSettings()
    chunks: ChunkSettings = ChunkSettings()

    def ports(self, others: Sequence[str] = ()) -> Ports:
        """``listen``, taken apart, for a node that meets others at these addresses."""
        if self.listen == AUTO:
            alone = all(is_loopback(split_address(other, default_port=RPC_PORT)[0]) for other in others)
            return Ports(LOOPBACK if alone else ANYWHERE, RPC_PORT, exactly=False)
        if self.listen.endswith("]:0") or (self.listen.count(":") == 1 and self.listen.endswith(":0")):
            return Ports(self.listen[:-2].strip("[]"), 0, exactly=False)
        host, port = split_address(self.listen, default_port=0)
        return Ports(host, port or RPC_PORT, exactly=port > 0)

    @property
    def bulk(self) -> BulkSettings:
        """What client and server of chunks are told."""
        return BulkSettings(encryption=self.chunk_encryption, **dict(self.chunks))

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_host("listen", self.ports().host)
        if self.advertise:
            _check_host("advertise", self.advertise)
        for address in self.join:
            split_address(address, default_port=RPC_PORT)
        if self.bootstrap_expect == 1 or (self.bootstrap_expect and not self.join):
            raise ConfigError("bootstrap_expect is for two nodes or more, each with the others in join")
        if self.bootstrap_expect and self.secret_file is None:
            raise ConfigError(
                "bootstrap_expect needs a secret_file: nodes that know nothing of each other share a key",
                hint="make one with `sllmd token keyfile PATH` and copy it to every node",
            )
        return self


def _check_host(key: str, host: str) -> None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(f"{key} needs an IP address, not `{host}`") from None

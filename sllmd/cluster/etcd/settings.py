"""What an owner may decide about an external etcd. Every limit has its reason. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import ByteSize, Field, field_validator, model_validator

from sllmd.core.frozen import Frozen
from sllmd.core.units import MIB, PositiveSeconds

INCARNATION_MAX = (1 << 15) - 1


class EtcdSettings(Frozen):
    """``[cluster.etcd]``: where it is, how to be let in, and how long to wait for it."""

    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    """Client URLs of the members of one etcd cluster; any that answers will do. etcd 3.4 or later."""
    prefix: str = "/sllmd"
    """Keys of this cluster lie below ``prefix/cluster id``: one etcd can serve several clusters."""
    ca_file: Path | None = None
    """PEM: who signed etcd's certificates. Unset: the system's authorities."""
    cert_file: Path | None = None
    """PEM: this node's client certificate, where etcd asks for one (``--client-cert-auth``)."""
    key_file: Path | None = None
    """PEM: its private key."""
    username: str | None = None
    """An etcd user that may read and write the prefix; unset where etcd's authentication is off."""
    password_file: Path | None = None
    """Holds the user's password, so that it stands in no configuration that is shown."""
    lease_seconds: PositiveSeconds = Field(default=5.0, ge=1.0)
    """A leader that cannot renew its lease stops leading within this time, and another may begin after it.
    Shorter: a dead leader is replaced sooner; longer: an election inside etcd (1 to 2 s) costs no leader.
    etcd rounds it up to 1.5 of its own election time-outs."""
    request_seconds: PositiveSeconds = 2.0
    """An endpoint that does not answer within this time is left for the next one."""
    propose_seconds: PositiveSeconds = 5.0
    """How long a command waits for its result: long enough to sit out an election inside etcd."""
    read_seconds: PositiveSeconds = 5.0
    """How long a linearizable read waits."""
    pulse_seconds: PositiveSeconds = 1.0
    """How often a node asks whether its view is the newest: the age of views, and how soon a watch that went
    silent is noticed."""
    retry_seconds: PositiveSeconds = 0.25
    """Pause after every endpoint has failed."""
    hand_over_seconds: PositiveSeconds = 1.0
    """A leader that hands over waits this long for another node to take the seat, then takes it back."""
    snapshot_commands: int = Field(default=10_000, ge=1)
    """The leader writes a snapshot after so many commands and deletes them: a new node reads as many."""
    snapshot_bytes: ByteSize = ByteSize(16 * MIB)
    """A snapshot is written after so many bytes of commands, however few they are."""
    compact: bool = True
    """Have etcd forget old revisions with every second snapshot, or its database grows to its quota. Turn it
    off where etcd compacts by itself (``--auto-compaction-retention``)."""
    incarnation: int = Field(default=0, ge=0, le=INCARNATION_MAX)
    """The high word of every epoch. Raise it by one, on every node, after etcd was restored from a backup or
    the cluster moved here from raft: epochs must never fall, and etcd's revisions then did."""

    @field_validator("endpoints")
    @classmethod
    def _check_endpoints(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        if not endpoints:
            raise ValueError("name at least one endpoint")
        for endpoint in endpoints:
            _check_endpoint(endpoint)
        if len({urlsplit(endpoint).scheme for endpoint in endpoints}) > 1:
            raise ValueError("either all endpoints are https or none is")
        return tuple(endpoint.rstrip("/") for endpoint in endpoints)

    @field_validator("prefix")
    @classmethod
    def _check_prefix(cls, prefix: str) -> str:
        if not prefix.strip("/"):
            raise ValueError("a prefix keeps this cluster's keys apart from others: it must not be empty")
        return prefix.rstrip("/")

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file go together")
        if not self.tls and (self.ca_file or self.cert_file):
            raise ValueError("ca_file and cert_file are for https endpoints")
        return self

    @property
    def tls(self) -> bool:
        """Whether the endpoints are https."""
        return urlsplit(self.endpoints[0]).scheme == "https"


def _check_endpoint(endpoint: str) -> None:
    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError as error:
        raise ValueError(f"`{endpoint}` is not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.hostname or port is None:
        raise ValueError(f"`{endpoint}` is not an endpoint; write for example `https://10.0.0.1:2379`")
    if url.path.strip("/") or url.query or url.username:
        raise ValueError(f"`{endpoint}` has more than a scheme, a host and a port")

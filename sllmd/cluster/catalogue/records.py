"""What the catalogue holds: one frozen record per thing. Pure.

``revision`` is the number of the command that last changed the record: compare-and-set names it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from sllmd.core.ids import Digest, ModelName, NodeId, ReplicaId


@dataclass(frozen=True, slots=True)
class Node:
    """A member that was admitted."""

    node: NodeId
    name: str
    address: str
    certificate_fingerprint: str
    devices: dict[str, int]
    """Bytes that replicas may take, by device."""
    labels: dict[str, str]
    cordoned: bool
    revision: int


@dataclass(frozen=True, slots=True)
class RemovedNode:
    """A node that was a member: its certificate is still signed by the CA, and no longer let in."""

    node: NodeId
    name: str
    revision: int


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """What a user wants of a model. The catalogue keeps it and does not judge it."""

    digest: Digest
    source: str
    aliases: tuple[ModelName, ...] = ()
    keep_alive_seconds: float | None = None
    min_replicas: int = 0
    max_replicas: int = 1
    placement: dict[str, str] = field(default_factory=dict)
    """Labels that a node must have."""
    target_running: int = 0
    """Generations on a replica beyond which there shall be one more; 0: as many as it runs together."""

    @property
    def stays_seconds(self) -> float | None:
        """How long an idle replica stays, infinite for ever; None: as its node has it."""
        forever = self.keep_alive_seconds is not None and self.keep_alive_seconds < 0
        return float("inf") if forever else self.keep_alive_seconds


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model under its name."""

    name: ModelName
    spec: DeploymentSpec
    revision: int


class ReplicaState(StrEnum):
    """How far an intent has come. GONE is not a state: a replica that is gone has no record."""

    REQUESTED = "requested"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Replica:
    """The intent that a copy of a model shall be on a node; ``revision`` counts its changes."""

    replica: ReplicaId
    deployment: ModelName
    node: NodeId
    devices: dict[str, int]
    """Bytes that it takes, by device."""
    state: ReplicaState
    revision: int


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key's hash, never the key."""

    key_id: str
    sha256: str
    scope: str
    revision: int


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A join token's hash, until when it is good, and how often."""

    token_id: str
    sha256: str
    expires_at_seconds: float
    uses_left: int
    revision: int
    claims: tuple[str, ...] = ()
    """Who used it last. A spent token is kept until it expires, so that each of them may ask again."""

    @property
    def is_revoked(self) -> bool:
        """A revoked token is kept, too, so that nobody can make it good again: the cluster key is registered
        by every node that has it, at every start."""
        return self.uses_left <= 0 and not self.claims


@dataclass(frozen=True, slots=True)
class Setting:
    """One value of the cluster's own settings, as bytes that its owner understands."""

    key: str
    value: bytes
    revision: int

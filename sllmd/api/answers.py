"""Bodies of ``/sllmd/v1`` that only the API puts together; the rest are in ``roles.status``. Pure."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sllmd.roles.status import LoadedStatus, ModelCard, MovedStatus, PlanStatus, ReplicaStatus, RequestStatus


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Health(_Answer):
    """The process answers."""

    status: Literal["ok"]


class Version(_Answer):
    """Of sllmd."""

    version: str


class ModelCards(_Answer):
    """All models, by name."""

    models: tuple[ModelCard, ...]


class Replicas(_Answer):
    """Of the node that answers."""

    replicas: tuple[ReplicaStatus, ...]


class Silent(_Answer):
    """A node that gave no answer."""

    node: str
    id: str
    reason: str


class Loaded(_Answer):
    """Of every node of the cluster, the answering one first."""

    nodes: tuple[LoadedStatus, ...]
    unreachable: tuple[Silent, ...]


class Freed(_Answer):
    """What an eviction gave back; 0: the copy is in use, or there is none."""

    model: str
    freed_bytes: int


class Requests(_Answer):
    """Generations that the answering node routes: running ones, then the recent ones, newest first."""

    requests: tuple[RequestStatus, ...]


class Request(_Answer):
    """The generations of one request."""

    request_id: str
    generations: tuple[RequestStatus, ...]
    names: dict[str, str]
    """Of the cluster's nodes, by id."""


class Plan(_Answer):
    """Where a model would start soonest."""

    plan: PlanStatus
    names: dict[str, str]
    """Of the cluster's nodes, by id."""


class Moves(_Answer):
    """What was to move, and how that went."""

    generations: tuple[MovedStatus, ...]


class RemovedNode(_Answer):
    """A node that is no member any more."""

    node: str
    id: str
    state: str
    """Before."""
    removed: Literal[True]


class Undrained(_Answer):
    """A node that may take work again."""

    node: str
    id: str
    drained: Literal[False]


class DeletedDeployment(_Answer):
    """A model that is no longer deployed."""

    name: str
    deleted: Literal[True]
    revision: int


class MadeKey(_Answer):
    """A new API key; its secret is told here and never again."""

    id: str
    secret: str
    scopes: tuple[str, ...]


class Revoked(_Answer):
    """An API key or a join token that opens nothing any more."""

    id: str
    revoked: Literal[True]


class TokenRecord(_Answer):
    """A join token, without its secret."""

    id: str
    expires_at: float
    """Unix seconds."""
    uses_left: int
    used: int


class TokenRecords(_Answer):
    """Those that may still be used."""

    tokens: tuple[TokenRecord, ...]


class MadeToken(_Answer):
    """A new join token; it is told here and never again."""

    token: str
    id: str
    expires_at: float
    """Unix seconds."""
    uses: int
    join: str
    """Where to join with it."""


class NodeKeys(_Answer):
    """The gossip keys that a node has installed, by id; the first one seals."""

    node: str
    id: str
    keys: tuple[str, ...]


class KeyringReport(_Answer):
    """All living nodes'."""

    nodes: tuple[NodeKeys, ...]
    unreachable: tuple[Silent, ...]


class RotatedKeyring(_Answer):
    """All nodes seal with this key now."""

    key: str


class Event(BaseModel):
    """Something that happened; facts of its kind stand beside these."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str | None
    """For ``Last-Event-ID``; None: a gap."""
    time: float
    """Unix seconds, by the clock of the node that tells it."""
    kind: str
    text: str
    """For people."""
    node: str
    """Name of the node that it is about, or where it happened."""
    told_by: str
    """Name of the node that saw it."""


class LogLine(BaseModel):
    """A line of a log; what it is about stands beside these. A gap has ``kind``, ``lost``, ``text``."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str | None
    """For ``Last-Event-ID``; None: a gap."""
    time: float
    """Unix seconds."""
    level: str = Field(default="info")
    event: str = Field(default="")

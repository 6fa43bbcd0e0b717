"""Members as people and other rooms see them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sllmd.cluster.gossip import Meta
from sllmd.cluster.gossip.messages import Status
from sllmd.core.ids import NodeId

GOSSIP_PORT = 8345
"""Where a node listens unless told otherwise; the next ones if it is taken."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is in the cluster."""

    cluster_id: str
    node: NodeId
    name: str


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen and what to tell others. ``port_exactly``: fail rather than take the next free one.
    ``port_last``: where this node was before; ``avoid``: ports of others that may come back to them."""

    host: str = "127.0.0.1"
    port: int = GOSSIP_PORT
    port_exactly: bool = False
    advertise_host: str | None = None
    port_last: int = 0
    avoid: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class MemberView:
    """A member as people see it."""

    node: NodeId
    name: str
    address: str
    status: Status
    since_seconds: float
    """Unix time of the last change of status, by this node's clock."""
    incarnation: int
    meta: Meta | None
    """None when it tells something that this version does not understand."""
    suspected_by: tuple[NodeId, ...]
    is_me: bool


@dataclass(frozen=True, slots=True)
class Change:
    """``member`` is None for one that is no longer listed."""

    node: NodeId
    member: MemberView | None


@dataclass(frozen=True, slots=True)
class JoinAttempt:
    """How it went. ``refused``: trying again there is in vain until somebody changes something."""

    address: str
    reason: str | None
    refused: bool = False

    @property
    def joined(self) -> bool:
        """Whether the other side's table is known now."""
        return self.reason is None

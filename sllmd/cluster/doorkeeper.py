"""Who is let in to talk to this node: members, and no longer those that were removed."""

from __future__ import annotations

from sllmd.cluster.catalogue import Catalogue
from sllmd.cluster.catalogue.records import RemovedNode
from sllmd.cluster.catalogue.table import Table
from sllmd.core.errors import PeerRefused
from sllmd.core.ids import NodeId

REMOVED = "it was removed from the cluster"
"""The reason, as the removed node hears it."""


def tells_removal(error: PeerRefused, me: NodeId) -> bool:
    """Whether another node refused this one because it is no member any more."""
    return f"node {me} is not let in: {REMOVED}" in error.message


class Doorkeeper:
    """An ``Admission`` that follows the catalogue; threads may call it.

    A node that the catalogue does not know yet is let in: the CA signs for nobody but members, and the one
    that could tell this node of the new member may be that member itself. Removed ones are known for good.
    """

    def __init__(self) -> None:
        self._seen: Table[RemovedNode] | None = None
        self._removed: frozenset[NodeId] = frozenset()

    @property
    def removed(self) -> frozenset[NodeId]:
        """Nodes that are not let in."""
        return self._removed

    def __call__(self, node: NodeId, _fingerprint: str) -> str | None:
        """See ``wire.tls.Admission``."""
        return REMOVED if node in self._removed else None

    def follow(self, catalogue: Catalogue) -> frozenset[NodeId]:
        """The catalogue is this now; nodes that were removed since."""
        if catalogue.removed is self._seen:
            return frozenset()
        before, self._seen = self._removed, catalogue.removed
        self._removed = frozenset(one.node for one in catalogue.removed.values())
        return self._removed - before

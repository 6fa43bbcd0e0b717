"""What an operator sees of the cluster through this node.

Owns: nothing; it asks membership, agreement and routing table, and merges what they know. Everything here is
what this node knows now, without asking anybody: it works while nobody leads.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping

from sllmd.cluster.member import RaftControl
from sllmd.cluster.node import ClusterNode
from sllmd.core.errors import InvalidRequest, RecordNotFound
from sllmd.core.ids import NodeId
from sllmd.roles.degraded import degraded_reasons, majority_lost
from sllmd.roles.inventory import Inventory
from sllmd.roles.members import ClusterFacts, cluster_status
from sllmd.roles.status import ClusterStatus, ClusterSummary, MemberStatus

Inventories = Callable[[], Mapping[NodeId, Inventory]]


class Fleet:
    """All nodes, as this one sees them. Asked once the node has joined."""

    def __init__(self, cluster: ClusterNode, inventories: Inventories) -> None:
        self.cluster = cluster
        self._inventories = inventories

    def status(self) -> ClusterStatus:
        """Members, leader, agreement."""
        return cluster_status(self._facts())

    def summary(self) -> ClusterSummary:
        """The same at a glance, with what is wrong."""
        facts = self._facts()
        status = cluster_status(facts)
        reasons = degraded_reasons(status, health=facts.health, now=time.time())
        control = self.cluster.control
        if isinstance(control, RaftControl) and control.lost_reason is not None:
            reasons = (f"this node agrees to nothing any more: {control.lost_reason}", *reasons)
        return ClusterSummary(
            cluster_id=status.cluster_id,
            node_id=facts.me,
            leader=status.leader,
            leads=control.leadership().is_me,
            epoch=status.epoch,
            members=dict(Counter(member.state for member in status.members)),
            control=status.control,
            degraded=reasons,
        )

    def require_majority(self) -> None:
        """Raises Conflict where so many voters are dead that the cluster cannot agree until some are back.

        A node that has just started and heard nobody yet does not know.
        """
        control = self.status().control
        lost = majority_lost(control)
        if lost is not None and control.age_seconds is not None:
            raise lost

    def find(self, name: str) -> MemberStatus:
        """The member of this name or id; of two namesakes the one that is here.

        Raises RecordNotFound, and InvalidRequest when the name means more than one.
        """
        found = [member for member in self.status().members if name in (member.name, member.id)]
        here = [member for member in found if member.state in ("alive", "suspect")]
        if len(here) > 1 or (not here and len(found) > 1):
            ids = ", ".join(member.id for member in here or found)
            raise InvalidRequest(f"`{name}` is the name of several nodes", hint=f"give an id: {ids}")
        if not found:
            raise RecordNotFound(f"there is no node `{name}`", hint="`sllmd members` shows them")
        return (here or found)[0]

    def name_of(self, node: str) -> str:
        """What people call a node; its id when it is not known any more."""
        view = self.cluster.membership.member(NodeId(node))
        return view.name if view is not None else node

    def _facts(self) -> ClusterFacts:
        cluster = self.cluster
        control = cluster.control
        view, leadership = control.view(), control.leadership()
        agreed = control.membership if isinstance(control, RaftControl) else None
        return ClusterFacts(
            cluster_id=cluster.identity.cluster_id,
            me=cluster.identity.node,
            heard=cluster.membership.members(),
            catalogue=view.catalogue,
            position=view.position,
            age_seconds=view.age_seconds,
            epoch=leadership.epoch,
            leader=leadership.leader,
            store="etcd" if agreed is None else "raft",
            voters=agreed.voters if agreed else (),
            learners=agreed.learners if agreed else (),
            inventories=self._inventories(),
            health=cluster.membership.health,
        )

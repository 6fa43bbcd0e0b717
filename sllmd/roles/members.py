"""The cluster as one node sees it: gossip, catalogue, agreement and routing table, merged. Pure.

1. Who gossip knows is a member in the state that gossip says.
2. Who was removed and is not here any more has left, whatever gossip still remembers.
3. Who stands in the catalogue and was never heard of counts as dead, since nobody knows when.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

from sllmd.cluster.catalogue import Catalogue
from sllmd.cluster.catalogue.records import Node
from sllmd.cluster.gossip.messages import Status
from sllmd.cluster.roster import MemberView
from sllmd.core.ids import NodeId
from sllmd.roles.inventory import Inventory
from sllmd.roles.status import ClusterStatus, ControlStatus, MemberRole, MemberState, MemberStatus

_STATES: Mapping[Status, MemberState] = {
    Status.ALIVE: "alive",
    Status.SUSPECT: "suspect",
    Status.DEAD: "dead",
    Status.LEFT: "left",
}


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What a node knows of its cluster, taken at one moment."""

    cluster_id: str
    me: NodeId
    heard: Sequence[MemberView]
    catalogue: Catalogue
    position: int
    age_seconds: float
    """Of the catalogue; infinite: nobody was heard yet."""
    epoch: int
    leader: NodeId | None
    store: str
    voters: Sequence[NodeId] = ()
    learners: Sequence[NodeId] = ()
    inventories: Mapping[NodeId, Inventory] = field(default_factory=dict)
    """What each node told about itself, as the routing table has it."""
    health: int = 0
    """0: this node is well; the higher, the slower it is (Lifeguard)."""


def cluster_status(facts: ClusterFacts) -> ClusterStatus:
    """All of it as an operator gets it."""
    members = member_statuses(facts)
    names = {member.id: member.name for member in members}
    leader = names.get(facts.leader, facts.leader) if facts.leader is not None else None
    return ClusterStatus(
        members=members,
        leader=leader,
        leader_id=facts.leader,
        epoch=facts.epoch,
        cluster_id=facts.cluster_id,
        control=_control_status(facts, members, names),
    )


def member_statuses(facts: ClusterFacts) -> tuple[MemberStatus, ...]:
    """Every member, by name; those that have the same name by id."""
    names = name_table(facts.heard, facts.catalogue)
    here = Counter(view.name for view in facts.heard if view.status <= Status.SUSPECT)
    heard = {view.node for view in facts.heard}
    members = [_heard(view, facts, names, here[view.name] > 1) for view in facts.heard]
    members += [_unheard(node, facts) for node in facts.catalogue.nodes.values() if node.node not in heard]
    return tuple(sorted(members, key=lambda member: (member.name, member.id)))


def name_table(heard: Sequence[MemberView], catalogue: Catalogue) -> dict[NodeId, str]:
    """The names of all nodes that were ever known; their own word is newer than the catalogue's."""
    removed = {node.node: node.name for node in catalogue.removed.values()}
    agreed = {node.node: node.name for node in catalogue.nodes.values()}
    return removed | agreed | {view.node: view.name for view in heard}


def _heard(
    view: MemberView, facts: ClusterFacts, names: Mapping[NodeId, str], name_conflict: bool
) -> MemberStatus:
    record = facts.catalogue.nodes.get(view.node)
    inventory = facts.inventories.get(view.node)
    is_here = view.status <= Status.SUSPECT
    removed = view.node in facts.catalogue.removed
    drains = is_here and inventory is not None and inventory.draining
    drained_since = inventory.drained_since_seconds if drains and inventory is not None else 0.0
    return MemberStatus(
        name=view.name,
        id=view.node,
        address=view.meta.address if view.meta else record.address if record else "",
        gossip_address=view.address,
        state="left" if removed and not is_here else _STATES[view.status],
        since=view.since_seconds,
        leader=is_here and view.node == facts.leader,
        role=_role(view.node, facts),
        version=view.meta.version if view.meta else None,
        suspected_by=tuple(names.get(node, node) for node in view.suspected_by),
        roles=view.meta.roles if view.meta else (),
        name_conflict=name_conflict and is_here,
        is_me=view.is_me,
        admitted=record is not None,
        cordoned=record is not None and record.cordoned,
        draining=drains and not drained_since,
        drained_since=drained_since or None,
        devices=_devices(record, inventory),
        replicas=len(inventory.replicas) if is_here and inventory else 0,
        running=sum(replica.running for replica in inventory.replicas) if is_here and inventory else 0,
    )


def _unheard(node: Node, facts: ClusterFacts) -> MemberStatus:
    return MemberStatus(
        name=node.name,
        id=node.node,
        address=node.address,
        gossip_address=None,
        state="dead",
        since=None,
        role=_role(node.node, facts),
        version=None,
        admitted=True,
        cordoned=node.cordoned,
        devices=tuple(node.devices),
    )


def _devices(record: Node | None, inventory: Inventory | None) -> tuple[str, ...]:
    if inventory is not None and inventory.devices:
        return tuple(device.name for device in inventory.devices)
    return tuple(record.devices) if record else ()


def _role(node: NodeId, facts: ClusterFacts) -> MemberRole:
    if node in facts.voters:
        return "voter"
    return "learner" if node in facts.learners else "client"


def _control_status(
    facts: ClusterFacts, members: Sequence[MemberStatus], names: Mapping[str, str]
) -> ControlStatus:
    alive = {member.id for member in members if member.state == "alive"}
    voters_alive = sum(node in alive for node in facts.voters)
    quorum = len(facts.voters) // 2 + 1
    unwell = {member.id for member in members if member.state in ("dead", "left")}
    dead = [node for node in facts.voters if node in unwell]
    is_led = facts.leader in alive
    is_lost = not is_led and len(facts.voters) - len(dead) < quorum
    return ControlStatus(
        store=facts.store,
        position=facts.position,
        age_seconds=facts.age_seconds if isfinite(facts.age_seconds) else None,
        voters=tuple(names.get(node, node) for node in facts.voters),
        voters_alive=voters_alive,
        voters_may_fail=max(0, voters_alive - quorum),
        majority_dead=tuple(names.get(node, node) for node in dead) if is_lost else (),
    )

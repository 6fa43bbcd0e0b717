"""Nodes, and the replicas that are meant to be on them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from sllmd.cluster.catalogue.commands import (
    NodeAdmit,
    NodeCordon,
    NodeRemove,
    ReplicaGone,
    ReplicaIntent,
    ReplicaMove,
    ReplicaPlan,
)
from sllmd.cluster.catalogue.records import Node, RemovedNode, Replica, ReplicaState
from sllmd.cluster.catalogue.registry import as_expected, conflict, missing
from sllmd.cluster.catalogue.results import Denied, Done, Planned, PlanResult, Reason, Result
from sllmd.cluster.catalogue.state import REMOVED_MAX, Catalogue, place
from sllmd.cluster.catalogue.table import Table

Outcome = tuple[Catalogue, Result]

_NEXT = {
    ReplicaState.REQUESTED: {ReplicaState.READY, ReplicaState.DRAINING},
    ReplicaState.READY: {ReplicaState.DRAINING},
    ReplicaState.DRAINING: {ReplicaState.READY},
}
"""Draining may be called off; nothing goes back to being only requested."""


def _node_admit(state: Catalogue, body: NodeAdmit) -> Outcome:
    current = state.nodes.get(body.node)
    wrong = _removed(state, body) or conflict(current, body.expected) or _name_taken(state, body)
    if wrong is not None:
        return state, wrong
    node = Node(
        body.node,
        body.name,
        body.address,
        body.certificate_fingerprint,
        body.devices,
        body.labels,
        current.cordoned if current else False,
        state.revision,
    )
    return replace(state, nodes=state.nodes.put(body.node, node)), Done(state.revision)


def _removed(state: Catalogue, body: NodeAdmit) -> Denied | None:
    removed = state.removed.get(body.node)
    if removed is None:
        return None
    return Denied(Reason.REMOVED, f"node {body.node} was removed from the cluster", removed.revision)


def _name_taken(state: Catalogue, body: NodeAdmit) -> Denied | None:
    for other in state.nodes.values():
        if other.name == body.name and other.node != body.node:
            return Denied(Reason.NAME_TAKEN, f"{body.name} is the name of node {other.node}", other.revision)
    return None


def _node_remove(state: Catalogue, body: NodeRemove) -> Outcome:
    current = as_expected(state.nodes.get(body.node), body.expected, f"node {body.node}")
    if isinstance(current, Denied):
        return state, current
    for replica in [one for one in state.replicas.values() if one.node == body.node]:
        state = _drop(state, replica)
    removed = state.removed
    if len(removed) >= REMOVED_MAX:
        removed = removed.without(min(removed.values(), key=lambda one: one.revision).node)
    removed = removed.put(body.node, RemovedNode(body.node, current.name, state.revision))
    return replace(state, nodes=state.nodes.without(body.node), removed=removed), Done(state.revision)


def _node_cordon(state: Catalogue, body: NodeCordon) -> Outcome:
    current = state.nodes.get(body.node)
    if current is None:
        return state, missing(f"node {body.node}")
    node = replace(current, cordoned=body.cordoned, revision=state.revision)
    return replace(state, nodes=state.nodes.put(body.node, node)), Done(state.revision)


def _replica_plan(state: Catalogue, body: ReplicaPlan) -> Outcome:
    items = []
    for intent in body.intents:
        current = state.replicas.get(intent.replica)
        reason = Reason.CONFLICT if current else _why_not(state, intent)
        if reason is None:
            replica = Replica(
                intent.replica,
                intent.deployment,
                intent.node,
                intent.devices,
                ReplicaState.REQUESTED,
                state.revision,
            )
            state = _add(state, replica)
        revision = current.revision if current else 0 if reason else state.revision
        items.append(Planned(intent.replica, reason, revision))
    return state, PlanResult(tuple(items), state.revision)


def _why_not(state: Catalogue, intent: ReplicaIntent) -> Reason | None:
    """The first thing that is wrong with an intent, against what is agreed now."""
    node = state.nodes.get(intent.node)
    if node is None or intent.deployment not in state.deployments:
        return Reason.UNKNOWN
    if node.cordoned:
        return Reason.CORDONED
    for device, size_bytes in sorted(intent.devices.items()):
        if device not in node.devices:
            return Reason.NO_SUCH_DEVICE
        if (state.used.get(place(intent.node, device)) or 0) + size_bytes > node.devices[device]:
            return Reason.DEVICE_FULL
    return None


def _replica_move(state: Catalogue, body: ReplicaMove) -> Outcome:
    current = as_expected(state.replicas.get(body.replica), body.expected, f"replica {body.replica}")
    if isinstance(current, Denied):
        return state, current
    if body.state not in _NEXT[current.state]:
        message = f"a replica that is {current.state} cannot become {body.state}"
        return state, Denied(Reason.WRONG_STATE, message, current.revision)
    replica = replace(current, state=body.state, revision=state.revision)
    return replace(state, replicas=state.replicas.put(body.replica, replica)), Done(state.revision)


def _replica_gone(state: Catalogue, body: ReplicaGone) -> Outcome:
    current = as_expected(state.replicas.get(body.replica), body.expected, f"replica {body.replica}")
    if isinstance(current, Denied):
        return state, current
    return _drop(state, current), Done(state.revision)


def _add(state: Catalogue, replica: Replica) -> Catalogue:
    replicas = state.replicas.put(replica.replica, replica)
    return replace(state, replicas=replicas, used=_book(state, replica, +1))


def _drop(state: Catalogue, replica: Replica) -> Catalogue:
    replicas = state.replicas.without(replica.replica)
    return replace(state, replicas=replicas, used=_book(state, replica, -1))


def _book(state: Catalogue, replica: Replica, sign: int) -> Table[int]:
    used = state.used
    for device, size_bytes in replica.devices.items():
        key = place(replica.node, device)
        total = (used.get(key) or 0) + sign * size_bytes
        used = used.put(key, total) if total else used.without(key)
    return used


def with_books(state: Catalogue, replicas: Iterable[Replica]) -> Catalogue:
    """A state with these replicas, and ``used`` counted from them."""
    for replica in replicas:
        state = _add(state, replica)
    return state


HANDLERS: dict[type, Callable[[Catalogue, Any], Outcome]] = {
    NodeAdmit: _node_admit,
    NodeRemove: _node_remove,
    NodeCordon: _node_cordon,
    ReplicaPlan: _replica_plan,
    ReplicaMove: _replica_move,
    ReplicaGone: _replica_gone,
}

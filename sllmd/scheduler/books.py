"""Who holds how much of a device, and who is expected on a path until when. Pure."""

from __future__ import annotations

import math

from sllmd.core.ids import ReplicaId
from sllmd.scheduler.view import NodeView, Path, ReplicaView


class Contradiction(Exception):
    """A report says what cannot be, given what is known of the node."""


def hold(node: NodeView, replica: ReplicaView) -> None:
    """``replica`` takes its devices. More than is free is no error here: the node's own admission is the
    judge, and a negative rest only says that nothing else fits."""
    for part, index in enumerate(replica.devices):
        device = node.devices[index]
        if replica.replica not in device.held:
            device.held[replica.replica] = part
            device.free_bytes -= device.taken_bytes(replica.model.device_bytes[part])
    _summarise(node)


def give_back(node: NodeView, replica: ReplicaView) -> None:
    """``replica`` leaves its devices."""
    for index in replica.devices:
        device = node.devices[index]
        part = device.held.pop(replica.replica, None)
        if part is not None:
            device.free_bytes += device.taken_bytes(replica.model.device_bytes[part])
    _summarise(node)


def _summarise(node: NodeView) -> None:
    node.free = sorted((device.free_bytes for device in node.devices), reverse=True)


def path_enter(path: Path, replica: ReplicaId, end_seconds: float) -> None:
    """A load is expected to leave ``path`` then."""
    before = path.ends.get(replica, -math.inf)
    path.ends[replica] = end_seconds
    if end_seconds >= path.until:
        path.until = end_seconds
    elif before == path.until:
        path.until = max(path.ends.values())


def path_leave(path: Path, replica: ReplicaId) -> None:
    """A load has left ``path``, or will not come."""
    if path.ends.pop(replica, None) is not None:
        path.until = max(path.ends.values(), default=-math.inf)


def path_late(path: Path, replica: ReplicaId, late_seconds: float) -> None:
    """A load leaves later (or earlier) than expected, and so do those behind it."""
    end = path.ends.get(replica)
    if end is None:
        return
    for other, other_end in path.ends.items():
        if other_end >= end:
            path.ends[other] = other_end + late_seconds
    path.until = max(path.ends.values())

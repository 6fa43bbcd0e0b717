"""Whether and where a model fits on a node. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sllmd.scheduler.facts import Model
from sllmd.scheduler.view import ClusterView, NodeView


def choose_devices(
    node: NodeView, model: Model, freed: dict[int, int] | None = None
) -> tuple[int, ...] | None:
    """A device for each part: those whose link is free first, then the fullest that will do."""
    extra = freed or {}
    if model.devices == 1:
        need = model.device_bytes[0]
        best, best_key = -1, (math.inf, math.inf)
        for index, device in enumerate(node.devices):
            free = device.free_bytes + extra.get(index, 0)
            key = (device.link.until, free)
            if free >= need and key < best_key:
                best, best_key = index, key
        return (best,) if best >= 0 else None
    order = sorted(
        range(len(node.devices)),
        key=lambda index: (node.devices[index].link.until, node.devices[index].free_bytes),
    )
    chosen = [-1] * model.devices
    # The largest part first: every device that takes it would take the others, too, so any choice is safe.
    for part in sorted(range(model.devices), key=lambda part: -model.device_bytes[part]):
        need = model.device_bytes[part]
        fits = (i for i in order if i not in chosen and node.devices[i].free_bytes + extra.get(i, 0) >= need)
        found = next(fits, None)
        if found is None:
            return None
        chosen[part] = found
    return tuple(chosen)


def has_room(free: Sequence[int], model: Model) -> bool:
    """Whether devices with so much free, most first, can take a replica."""
    needs = model.needs
    count = len(needs)
    if count > len(free) or free[0] < needs[0]:
        return False
    if count == 1 or free[count - 1] >= needs[0]:
        return True
    return all(room >= need for room, need in zip(free, needs, strict=False))


def may_take(view: ClusterView, node: NodeView, model: Model) -> bool:
    """Whether anything new of ``model`` may be put on ``node``, room apart."""
    if node.draining or not node.trusted or view.is_stale(node):
        return False
    rules = model.rules
    return (not rules.labels and not rules.nodes) or rules.allow(node.name, node.labels)

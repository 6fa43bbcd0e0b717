"""Which copies leave DRAM to make room. Pure.

A copy that nobody leases may go. Copies go in the order of *chance times cost*, least first: the chance that
somebody asks for it soon, times what bringing a slab of it back would take (section 6 weighs loads the same
way). Where nothing is known but when it was used, that is least recently used first among copies from the
same disk, and one that has to come over the network again is kept longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sllmd.core.ids import Digest

HORIZON_SECONDS = 60.0
"""How far ahead a copy's chance looks."""


def chance_of_idle(idle_seconds: float) -> float:
    """Where nothing else is known: a silence goes on for as long again with an even chance."""
    return HORIZON_SECONDS / (HORIZON_SECONDS + idle_seconds)


@dataclass(frozen=True, slots=True)
class Copy:
    """What the books know of one copy."""

    digest: Digest
    slabs: int
    leased: bool
    idle_seconds: float
    chance: float
    """That it is used within ``HORIZON_SECONDS``."""
    reload_seconds: float
    """What bringing it back is estimated to take."""


@dataclass(frozen=True, slots=True)
class Shortage:
    """No eviction makes enough room; ``missing_slabs`` are held by leases, or do not exist."""

    missing_slabs: int


def make_room(copies: Iterable[Copy], needed_slabs: int, room_slabs: int) -> tuple[Digest, ...] | Shortage:
    """The copies to evict so that ``needed_slabs`` fit, ``room_slabs`` being there already.

    1. There is room: nobody goes.
    2. All idle copies together are not enough: nobody goes either, since it would not help.
    3. Else they go in order, and those that turn out not to be needed, once a larger one goes, stay.
    """
    missing = needed_slabs - room_slabs
    if missing <= 0:
        return ()
    idle = sorted((copy for copy in copies if not copy.leased and copy.slabs), key=_order)
    available = sum(copy.slabs for copy in idle)
    if available < missing:
        return Shortage(missing - available)
    going: list[Copy] = []
    for copy in idle:
        if sum(gone.slabs for gone in going) >= missing:
            break
        going.append(copy)
    surplus = sum(copy.slabs for copy in going) - missing
    for copy in list(reversed(going)):
        if copy.slabs <= surplus:
            surplus -= copy.slabs
            going.remove(copy)
    return tuple(copy.digest for copy in going)


def _order(copy: Copy) -> tuple[float, float, str]:
    cost_per_slab = max(copy.reload_seconds, 1e-9) / copy.slabs
    return copy.chance * cost_per_slab, -copy.idle_seconds, copy.digest

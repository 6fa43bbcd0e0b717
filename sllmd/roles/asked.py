"""A place that the leader chooses: asked when it is needed, not before.

Without an answer, or when the leader names a node that could not run it, the router's own choice takes over.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from sllmd.core.ids import NodeId
from sllmd.roles.decided import Decided
from sllmd.roles.place import Place
from sllmd.roles.work import Granted, Happening, Work

Resolve = Callable[[Work], Awaitable[tuple[Place, Decided | None]]]


class AskedPlace:
    """See the module. ``node`` is empty until it is known."""

    def __init__(self, resolve: Resolve) -> None:
        self.node = NodeId("")
        self._resolve = resolve

    async def run(self, work: Work) -> AsyncGenerator[Happening, None]:
        """See ``Place``."""
        began_seconds = time.monotonic()
        place, decision = await self._resolve(work)
        self.node = place.node
        async with aclosing(place.run(work)) as happenings:
            async for happening in happenings:
                if isinstance(happening, Granted):
                    yield _as_decided(happening, decision, (time.monotonic() - began_seconds) * 1000)
                else:
                    yield happening

    async def berth(self, work: Work) -> Any:
        """See ``Place``."""
        place, _ = await self._resolve(work)
        self.node = place.node
        return await place.berth(work)


def _as_decided(granted: Granted, decision: Decided | None, waited_ms: float) -> Granted:
    """With its decision. A replica that was started for this work is cold, even where it was ready before the
    work came to its node."""
    load = decision.starts if decision is not None else None
    if decision is None or load is None or granted.cold:
        return replace(granted, decision=decision)
    estimate_ms = decision.total_seconds * 1000
    return replace(
        granted, decision=decision, cold=True, tier=load.source, load_ms=waited_ms, estimate_ms=estimate_ms
    )

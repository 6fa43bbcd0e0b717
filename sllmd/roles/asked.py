"""A place that the leader chooses: asked when it is needed, not before.

Without an answer, or when the leader names a node that could not run it, the router's own choice takes over.
"""

from __future__ import annotations

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
        place, decision = await self._resolve(work)
        self.node = place.node
        async with aclosing(place.run(work)) as happenings:
            async for happening in happenings:
                if isinstance(happening, Granted):
                    yield replace(happening, decision=decision)
                else:
                    yield happening

    async def berth(self, work: Work) -> Any:
        """See ``Place``."""
        place, _ = await self._resolve(work)
        self.node = place.node
        return await place.berth(work)

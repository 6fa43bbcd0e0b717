"""How changes of members reach those who want to know."""

from __future__ import annotations

import asyncio
from typing import Self

from sllmd.cluster.roster import Change
from sllmd.core.ids import NodeId


class Changes:
    """Changes of members, as an async iterator that never ends.

    Holds what its reader has not read yet: of each member the newest change, so that a slow reader costs no
    more memory than there are members.
    """

    def __init__(self) -> None:
        self._pending: dict[NodeId, Change] = {}
        self._event = asyncio.Event()

    def put(self, change: Change) -> None:
        """One more; replaces an unread one of the same member."""
        self._pending.pop(change.node, None)
        self._pending[change.node] = change
        self._event.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._pending:
            self._event.clear()
            await self._event.wait()
        return self._pending.pop(next(iter(self._pending)))

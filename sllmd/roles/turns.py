"""A bound on what is under way at a time, by number and by size; who has waited longest is next.

Something that is larger than the bound is let in when nothing else is under way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class Turns:
    """See the module."""

    def __init__(self, *, count_max: int, size_max: int) -> None:
        self.count = 0
        """Of those under way."""
        self.size = 0
        """Theirs together."""
        self._count_max = count_max
        self._size_max = size_max
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def turn(self, size: int) -> AsyncGenerator[None, None]:
        """Be under way while the context lasts."""
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, entered))
        self._let_in()
        try:
            await entered
            yield
        finally:
            if not entered.cancelled():
                self.count -= 1
                self.size -= size
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            size, entered = self._waiting[0]
            full = self.count >= self._count_max or self.size + size > self._size_max
            if not entered.cancelled():
                if self.count and full:
                    return
                self.count += 1
                self.size += size
                entered.set_result(None)
            self._waiting.popleft()

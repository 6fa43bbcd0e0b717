"""Something changed: everybody who waits is woken, once, and looks for himself."""

from __future__ import annotations

import asyncio


class Bell:
    """Any number of listeners, one future between them."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake whoever waits now."""
        if self._next is not None:
            if not self._next.done():
                self._next.set_result(None)
            self._next = None

    async def wait(self, timeout_seconds: float | None = None) -> bool:
        """Until the next ring; False: the time was up first."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_seconds):
                await asyncio.shield(self._next)
        except TimeoutError:
            return False
        return True

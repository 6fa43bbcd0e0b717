"""Work that runs for ever: what crashes is told, and begins anew."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

CRASH_PAUSE_SECONDS = 1.0
"""Before what crashed begins anew."""

_log = structlog.get_logger(__name__)


async def keep_running(part: Callable[[], Awaitable[None]]) -> None:
    """Until it is cancelled: the others must not wait for ever for a part that crashed."""
    while True:
        try:
            await part()
        except Exception:  # noqa: BLE001  a supervisor
            _log.exception("crashed, beginning anew", part=part.__qualname__)
        await asyncio.sleep(CRASH_PAUSE_SECONDS)

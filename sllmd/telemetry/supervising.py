"""Tasks that last as long as their owner: what crashes is told, and begins anew.

The one supervisor of loops. What a single message, call or connection crashes is caught where it is handled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

PAUSE_SECONDS = 1.0
"""Before what crashed begins anew."""

_log = structlog.get_logger(__name__)


def keep_running(
    part: Callable[[], Awaitable[None]], *, expected: tuple[type[Exception], ...] = ()
) -> asyncio.Task[None]:
    """A task that does ``part`` until it returns or is cancelled; the others must not wait for ever for one
    that crashed. ``expected``: what it may raise that is no defect."""
    return asyncio.create_task(_keep_running(part, expected), name=part.__qualname__)


async def _keep_running(part: Callable[[], Awaitable[None]], expected: tuple[type[Exception], ...]) -> None:
    while True:
        try:
            return await part()
        except expected as error:
            _log.info("not possible now, trying again", part=part.__qualname__, reason=str(error))
        except Exception:  # noqa: BLE001  a supervisor: what ends silently would be missed much later
            _log.exception("crashed, beginning anew", part=part.__qualname__)
        if _is_being_ended():
            return None
        await asyncio.sleep(PAUSE_SECONDS)


def _is_being_ended() -> bool:
    """Whether the task that asks was cancelled, which a crash on the way out hides."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end_tasks(*tasks: asyncio.Future[Any] | None) -> None:
    """Cancel these, where there are any, and return when they have ended in whatever way."""
    ending = [task for task in tasks if task is not None]
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)

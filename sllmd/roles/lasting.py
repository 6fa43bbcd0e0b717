"""Tasks that last as long as the daemon: one that ends before must not do so unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import structlog

_log = structlog.get_logger(__name__)


def lasting(work: Coroutine[None, None, None], what: str) -> asyncio.Task[None]:
    """``work`` until it is cancelled; if it fails, the log tells that ``what`` has stopped."""
    task = asyncio.get_running_loop().create_task(work)

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            _log.error("stopped for good: restart this node", what=what, exc_info=task.exception())

    task.add_done_callback(ended)
    return task

"""Waiting for what happens elsewhere: in another task, thread, process or node.

A test waits for a condition and never for a time. The bound is for a program that is broken: whatever works
gets there sooner, on however slow and busy a machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE_SECONDS = 60.0
_EAGER_SECONDS = 0.05
"""So long every turn of the loop is looked at; after that what is waited for takes its time, and so do we."""
_PAUSE_SECONDS = 0.005


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Hold this thread until ``condition``; AssertionError if it never comes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(_PAUSE_SECONDS)


async def eventually(
    condition: Callable[[], object], what: str = "what is waited for", seconds: float = PATIENCE_SECONDS
) -> None:
    """The same in a loop, whose other tasks go on."""
    begun = time.monotonic()
    while not condition():
        waited = time.monotonic() - begun
        assert waited < seconds, f"never: {what}"
        await asyncio.sleep(0 if waited < _EAGER_SECONDS else _PAUSE_SECONDS)

"""Work that must not end."""

from __future__ import annotations

import asyncio

import pytest

from sllmd.cluster import supervising
from sllmd.cluster.supervising import keep_running
from tests.waiting import PATIENCE_SECONDS


async def test_what_crashes_begins_anew_until_it_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "CRASH_PAUSE_SECONDS", 0.0)
    begun, third = 0, asyncio.Event()

    async def part() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise ZeroDivisionError
        third.set()
        await asyncio.Event().wait()

    work = asyncio.create_task(keep_running(part))
    await asyncio.wait_for(third.wait(), PATIENCE_SECONDS)
    work.cancel()
    await asyncio.wait([work])
    assert work.cancelled()

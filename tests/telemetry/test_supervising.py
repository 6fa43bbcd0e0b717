"""Work that must not end."""

from __future__ import annotations

import asyncio

import pytest

from sllmd.telemetry import supervising
from sllmd.telemetry.supervising import end_tasks, keep_running
from tests.waiting import PATIENCE_SECONDS


@pytest.mark.parametrize("expected", [(), (ZeroDivisionError,)])
async def test_what_crashes_begins_anew_until_it_is_ended(
    monkeypatch: pytest.MonkeyPatch, expected: tuple[type[Exception], ...]
) -> None:
    monkeypatch.setattr(supervising, "PAUSE_SECONDS", 0.0)
    begun, third = 0, asyncio.Event()

    async def part() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise ZeroDivisionError
        third.set()
        await asyncio.Event().wait()

    work = keep_running(part, expected=expected)
    await asyncio.wait_for(third.wait(), PATIENCE_SECONDS)
    await end_tasks(work, None)
    assert work.cancelled()


async def test_what_crashes_on_its_way_out_does_not_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervising, "PAUSE_SECONDS", 0.0)
    begun, again = asyncio.Event(), asyncio.Event()

    async def part() -> None:
        if begun.is_set():
            again.set()
            return
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError

    work = keep_running(part)
    await asyncio.wait_for(begun.wait(), PATIENCE_SECONDS)
    await end_tasks(work)
    assert not again.is_set()


async def test_what_is_done_is_not_begun_anew() -> None:
    begun = 0

    async def part() -> None:
        nonlocal begun
        begun += 1

    await asyncio.wait_for(keep_running(part), PATIENCE_SECONDS)
    assert begun == 1


async def test_ending_passes_on_no_failure() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    failing = asyncio.create_task(fail())
    await asyncio.wait([failing])
    await end_tasks(failing)
    assert isinstance(failing.exception(), ZeroDivisionError)

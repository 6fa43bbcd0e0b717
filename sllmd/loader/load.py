"""One load, as the event loop sees it: its transfer's counters, its waiters, its stall clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from sllmd.core.errors import LoadStalled, SllmdError
from sllmd.core.units import format_bytes, format_seconds
from sllmd.loader.gauge import Gauge
from sllmd.loader.pipeline import Lane, Source, Transfer
from sllmd.loader.plan import Plan
from sllmd.loader.settings import LoaderSettings
from sllmd.loader.slab import Slab
from sllmd.loader.status import LoadProgress, LoadReport, LoadState


class Load:
    """Belongs to the event loop's thread; ``_threads_*`` methods are called from lanes' threads."""

    def __init__(
        self,
        plan: Plan,
        slabs: list[list[Slab]],
        source: Source,
        lane: Lane,
        settings: LoaderSettings,
        *,
        verified: bool,
        on_over: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        """``on_over``: waiters were told; ``on_end``: and no thread touches its memory any more."""
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._lane = lane
        self._verified = verified
        self._on_over = on_over
        self._on_end = on_end
        self._changed = asyncio.Event()
        self._report: LoadReport | None = None
        self._failure: SllmdError | None = None
        self._over = asyncio.Event()
        self._gauge = Gauge()
        self._measured = (0, time.monotonic())
        self._wake_due_at = 0.0
        self._stall_check: asyncio.TimerHandle | None = None
        self.transfer = Transfer(
            plan, slabs, source, on_change=self._threads_changed, on_end=self._threads_ended
        )

    def start(self) -> None:
        """Queue it. No other transfer may use its memory from here on."""
        self.transfer.moved_at = time.monotonic()
        self.transfer.source.open()
        self._lane.submit(self.transfer)

    def watch(self) -> None:
        """Start the stall clock, which also runs while its memory or its turn is waited for."""
        if not self._over.is_set():
            wait = min(1.0, self._settings.stall_timeout_seconds / 4)
            self._stall_check = self._loop.call_later(wait, self._check_stall)

    def _check_stall(self) -> None:
        transfer = self.transfer
        # Waiting behind another load that moves is no stall.
        moved_at = transfer.moved_at if transfer.began_at else max(transfer.moved_at, self._lane.moved_at)
        if transfer.publishing or time.monotonic() - moved_at < self._settings.stall_timeout_seconds:
            self.watch()
            return
        done, total = format_bytes(transfer.bytes_done), format_bytes(transfer.bytes_total)
        waited = format_seconds(self._settings.stall_timeout_seconds)
        self.abort(
            LoadStalled(
                f"no byte arrived for {waited}, {done} of {total} are there ({transfer.source.stage})",
                hint="check the disk or the network, or raise stall_timeout_seconds",
            )
        )

    @property
    def failed(self) -> bool:
        """Whether waiters get an error."""
        return self._failure is not None

    def abort(self, error: SllmdError) -> bool:
        """Give up; waiters get ``error`` at once, its memory is free when ``transfer.ended``.

        False: too late, all bytes are there.
        """
        if not self.transfer.abort(error):
            return False
        self._finish()
        return True

    def _threads_changed(self) -> None:
        # Many threads report many chunks; the loop is woken once per interval. The unguarded write can at
        # worst wake it twice.
        now = time.monotonic()
        if now >= self._wake_due_at:
            self._wake_due_at = now + self._settings.progress_interval_seconds
            self._call_soon(self._wake)

    def _threads_ended(self) -> None:
        self._call_soon(self._end)

    def _call_soon(self, callback: Callable[[], None]) -> None:
        # A read that was stuck may come back after the tier was closed.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)

    def _wake(self) -> None:
        done, at = self._measured
        now = time.monotonic()
        self._gauge.observe(self.transfer.bytes_done - done, now - at)
        self._measured = (self.transfer.bytes_done, now)
        if self.transfer.error is not None:
            self._finish()
        self._changed.set()
        self._changed = asyncio.Event()

    def _end(self) -> None:
        self._finish()
        self._on_end()

    def _finish(self) -> None:
        """Tell every waiter, once."""
        if self._over.is_set():
            return
        if self._stall_check is not None:
            self._stall_check.cancel()
        self._failure = self.transfer.error
        if self._failure is None:
            self._report = self._make_report()
        self._over.set()
        self._changed.set()
        self._on_over()

    def _make_report(self) -> LoadReport:
        transfer = self.transfer
        began_at = transfer.began_at or transfer.ended_at
        return LoadReport(
            stage=transfer.source.stage,
            size_bytes=transfer.bytes_total,
            seconds=transfer.ended_at - began_at,
            direct_io=transfer.source.direct_io,
            verified=self._verified,
            stored=transfer.source.stored,
        )

    async def result(self) -> LoadReport:
        """Wait for the end. Raises the load's error, to every waiter."""
        await self._over.wait()
        if self._failure is not None:
            raise self._failure
        assert self._report is not None
        return self._report

    async def changed(self) -> LoadProgress:
        """Wait for the next change; returns at once when the load is over."""
        if not self._over.is_set():
            await self._changed.wait()
        return self.progress()

    def progress(self) -> LoadProgress:
        """Now."""
        transfer = self.transfer
        rate = self._gauge.bytes_per_second or 0.0
        left = transfer.bytes_total - transfer.bytes_done
        return LoadProgress(
            stage=transfer.source.stage,
            state=self._state(),
            bytes_done=transfer.bytes_done,
            bytes_total=transfer.bytes_total,
            bytes_per_second=rate,
            eta_seconds=0.0 if not left else left / rate if rate else None,
            seconds=self._seconds(),
        )

    def _seconds(self) -> float:
        """Since its turn began; a lane whose bandwidth is capped plans turns ahead."""
        began_at = self.transfer.began_at
        return max(0.0, time.monotonic() - began_at) if began_at is not None else 0.0

    def _state(self) -> LoadState:
        if self._over.is_set():
            return "failed" if self._failure is not None else "loaded"
        if self.transfer.publishing:
            return "publishing"
        return "loading" if self.transfer.began_at is not None else "queued"

"""Chunks on their way: transfers, and the lanes whose threads carry them.

A *lane* is what limits a hop: one disk, one remote server. Its threads serve its transfers first come first
served, chunk by chunk, so a second load begins where the first one leaves threads idle. A *transfer* is one
load's chunks. It ends once: all chunks carried, or the first error or cancellation, and in both cases only
when no thread touches its memory any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from sllmd.core.errors import LoadError, SllmdError
from sllmd.loader.disk import Advance
from sllmd.loader.gauge import Gauge, Throttle
from sllmd.loader.plan import Chunk, Plan, extents
from sllmd.loader.slab import Slab
from sllmd.loader.status import Stage
from sllmd.loader.watermarks import Watermarks
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.manifest import align_up

_log = structlog.get_logger(__name__)


class Source(Protocol):
    """Where a transfer's bytes come from; see ``disk`` and ``remote``."""

    stage: Stage

    def open(self) -> None:
        """Once, before the first read and when no other load of the checkpoint runs. Never raises."""

    @property
    def direct_io(self) -> bool:
        """Whether all files were read and written past the page cache."""

    @property
    def stored(self) -> bool:
        """Whether the bytes are on SSD once the transfer ended well."""

    @property
    def published(self) -> Checkpoint | None:
        """What the checkpoint became when its bytes came to this node; None: nothing changed."""

    def read(self, chunk: Chunk, views: Sequence[memoryview], advance: Advance) -> None:
        """Fill ``views`` (padded to the alignment) with ``chunk``, verified. Raises SllmdError."""

    def interrupt(self) -> None:
        """Have reads in flight return soon, where that is possible."""

    def publish(self) -> None:
        """All chunks arrived: make the copy on SSD complete. Raises SllmdError."""

    def close(self) -> None:
        """Let go of descriptors and connections; no read is in flight."""


class Cancelled(LoadError):
    """Nobody waits for this load any more."""


class Transfer:
    """One load's chunks, taken and carried by a lane's threads."""

    def __init__(
        self,
        plan: Plan,
        slabs: Sequence[Sequence[Slab]],
        source: Source,
        *,
        on_change: Callable[[], None],
        on_end: Callable[[], None],
    ) -> None:
        self.source = source
        self.bytes_total = plan.size_bytes
        self.bytes_done = 0
        self.error: SllmdError | None = None
        self.ended = False
        self.publishing = False
        """All bytes are in memory; the copy on SSD is being completed."""
        now = time.monotonic()
        self.began_at: float | None = None
        self.ended_at = now
        self.moved_at = now
        """When the last byte arrived."""
        self._slabs = slabs
        self._chunks = iter(plan.chunks)
        self._watermarks = Watermarks(plan)
        self._exhausted = False
        self._ending = False
        self._in_flight = 0
        self._aborted = threading.Event()
        self._lock = threading.Lock()
        self._on_change = on_change
        self._on_end = on_end

    @property
    def still(self) -> bool:
        """No thread touches its memory, now or later; it may still be publishing."""
        return self._ending

    def bytes_ready(self) -> tuple[int, ...]:
        """How far each partition is filled without a gap."""
        with self._lock:
            return self._watermarks.bytes_ready()

    def take(self) -> Chunk | None:
        """The next chunk to carry; None: no more."""
        with self._lock:
            chunk = None if self.error else next(self._chunks, None)
            if chunk is None:
                self._exhausted = True
                return None
            self._in_flight += 1
            return chunk

    def begin(self, at: float) -> None:
        """The turn of a chunk begins then (monotonic); that of the first one is the load's beginning."""
        if self.began_at is None:
            self.began_at = self.moved_at = at

    def carry(self, chunk: Chunk, delay_seconds: float) -> bool:
        """Bring one taken chunk into memory, ``delay_seconds`` from now; whether it did. Never raises."""
        error: SllmdError | None = None
        views = self._views(chunk)
        try:
            if delay_seconds:
                self.moved_at = time.monotonic() + delay_seconds
                self._aborted.wait(delay_seconds)
            if not self._aborted.is_set():
                self.source.read(chunk, views, self._advance)
        except SllmdError as raised:
            error = raised
        except Exception as raised:  # noqa: BLE001  a crash in a lane's thread becomes this load's error
            _log.exception("load crashed", file=chunk.file.path, chunk=chunk.index)
            error = LoadError(f"loading {chunk.file.path} failed: {type(raised).__name__}: {raised}")
        _forget_frames(error)
        for view in views:
            view.release()
        self._carried(chunk, error)
        return self.error is None

    def _views(self, chunk: Chunk) -> list[memoryview]:
        slabs = self._slabs[chunk.partition]
        pieces = extents(chunk.address_bytes, align_up(chunk.size_bytes), slabs[0].size_bytes)
        return [slabs[piece.slab].view(piece.start, piece.stop) for piece in pieces]

    def _advance(self, count: int) -> None:
        with self._lock:
            self.bytes_done += count
            self.moved_at = time.monotonic()
        self._on_change()

    def _carried(self, chunk: Chunk, error: SllmdError | None) -> None:
        if error is not None:
            self.abort(error)
        with self._lock:
            if self.error is None:
                self._watermarks.arrived(chunk)
            self._in_flight -= 1
        self.end_if_done()

    def abort(self, error: SllmdError) -> bool:
        """Give up, because of ``error``; the first one counts. It ends when reads in flight return.

        False: too late, all bytes are there or it was given up before.
        """
        with self._lock:
            if self.error is not None or self._ending:
                return False
            self.error = error
        self._aborted.set()
        self.source.interrupt()
        self._on_change()
        self.end_if_done()
        return True

    def end_if_done(self) -> None:
        """End it if no chunk is in flight or left, and it did not end yet."""
        with self._lock:
            over = self.error is not None or self._exhausted
            if self._in_flight or not over or self._ending:
                return
            self._ending = True
        if self.error is None:
            self.error = self._publish()
        self.source.close()
        self.ended_at = time.monotonic()
        self.ended = True
        self._on_end()

    def _publish(self) -> SllmdError | None:
        self.publishing = True
        self._on_change()
        try:
            self.source.publish()
        except SllmdError as error:
            _forget_frames(error)
            return error
        except Exception as raised:  # noqa: BLE001  a crash in a lane's thread becomes this load's error
            _log.exception("publishing crashed")
            return LoadError(f"the copy on SSD could not be completed: {type(raised).__name__}: {raised}")
        return None


def _forget_frames(error: BaseException | None) -> None:
    # Frames hold views of slabs, and a slab with views cannot be closed.
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class Lane:
    """Threads that carry chunks of the transfers submitted to one disk or server."""

    def __init__(self, name: str, *, threads: int, bandwidth_max_bytes: int) -> None:
        self.name = name
        self.gauge = Gauge()
        self.moved_at = 0.0
        self._throttle = Throttle(bandwidth_max_bytes)
        self._transfers: list[Transfer] = []
        """Those with chunks to take."""
        self._running: list[Transfer] = []
        """Those, and the ones whose last chunks are in flight."""
        self._wake = threading.Condition()
        self._closing = False
        self._carrying = 0
        self._marked_at = 0.0
        # Daemon threads: one that is stuck in a dead disk must not keep the process alive.
        self._threads = [
            threading.Thread(target=self._run, name=f"{name} {number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, transfer: Transfer) -> None:
        """Queue a transfer behind the ones that are here."""
        with self._wake:
            self._transfers.append(transfer)
            self._running = [each for each in self._running if not each.ended] + [transfer]
            self._wake.notify_all()

    def queued_bytes(self) -> int:
        """Bytes still to carry over all transfers."""
        with self._wake:
            return sum(each.bytes_total - each.bytes_done for each in self._running if not each.ended)

    def _run(self) -> None:
        while (work := self._next()) is not None:
            transfer, chunk, delay_seconds = work
            if chunk is None:
                transfer.end_if_done()
            else:
                self._measure(chunk, transfer.carry(chunk, delay_seconds))

    def _next(self) -> tuple[Transfer, Chunk | None, float] | None:
        """The next chunk of the first transfer, or that transfer without one: it leaves. None: closing."""
        with self._wake:
            while not self._transfers:
                if self._closing:
                    return None
                self._wake.wait()
            transfer = self._transfers[0]
            chunk = transfer.take()
            if chunk is None:
                del self._transfers[0]
                return transfer, None, 0.0
            now = time.monotonic()
            if not self._carrying:
                self._marked_at = now
            self._carrying += 1
            begin, end = self._throttle.book(chunk.size_bytes, now)
            transfer.begin(begin)
            # Reading at the end of the turn, not at its beginning: bytes are there when they may be.
            return transfer, chunk, end - now

    def _measure(self, chunk: Chunk, carried: bool) -> None:
        with self._wake:
            now = time.monotonic()
            if carried:
                self.gauge.observe(chunk.size_bytes, now - self._marked_at)
            self.moved_at = self._marked_at = now
            self._carrying -= 1

    def stop(self) -> None:
        """Have the threads leave once nothing is queued."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()

    def join(self, deadline: float) -> bool:
        """Wait for the threads until ``deadline`` (monotonic); False: some are stuck. Blocks."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

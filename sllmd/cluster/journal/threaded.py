"""The journal's async face: one thread does the disk's work in order; what waits together syncs together.

``persist`` never blocks the event loop and answers when the write, and all before it, is durable. A
failure answers every waiting and every later call: the shell then steps down and stops.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sllmd.cluster.journal.wal import Recovered, Wal
from sllmd.cluster.raft.entries import SnapshotMeta
from sllmd.cluster.raft.events import Persist

GROUP_MAX = 1_024
"""Writes synced together: far more than one event loop hands over during one sync."""


@dataclass(frozen=True, slots=True)
class _Job:
    """Work for the thread; a ``Persist`` may be grouped with its neighbours, anything else stands alone."""

    work: Persist | Callable[[], Any]
    answer: asyncio.Future[Any]


class Journal:
    """A ``Wal`` behind a thread. Made inside a running event loop, from a ``Wal`` that is open."""

    def __init__(self, wal: Wal) -> None:
        self._wal = wal
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._held: list[_Job | None] = []  # taken from the queue, and not part of the last group
        self._thread = threading.Thread(target=self._run, name="cluster-journal", daemon=True)
        self._thread.start()

    @property
    def recovered(self) -> Recovered:
        """What the journal held when it was opened."""
        return self._wal.recovered

    def persist(self, persist: Persist) -> asyncio.Future[None]:
        """Resolved once this write and all before it are durable; fails with JournalFailed."""
        return self._submit(persist)

    async def save_snapshot(self, meta: SnapshotMeta, data: bytes) -> bool:
        """Make a snapshot of this node's own durable; False where a newer one came; raises JournalFailed."""
        return bool(await self._submit(lambda: self._wal.save_snapshot(meta, data)))

    async def write_snapshot_part(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        """Write a part of a received snapshot; raises JournalFailed."""
        await self._submit(lambda: self._wal.write_snapshot_part(meta, offset, data))

    async def finish_snapshot(self, meta: SnapshotMeta) -> bool:
        """Check and publish a received snapshot; False where its checksum is wrong."""
        return bool(await self._submit(lambda: self._wal.finish_snapshot(meta)))

    async def read_snapshot(self, meta: SnapshotMeta) -> bytes:
        """All of a snapshot; raises JournalCorrupt."""
        data: bytes = await self._submit(lambda: self._wal.snapshots.read(meta))
        return data

    async def read_snapshot_part(self, meta: SnapshotMeta, offset: int, bytes_max: int) -> bytes | None:
        """A part of a snapshot to send; None where it is gone."""
        part: bytes | None = await self._submit(
            lambda: self._wal.snapshots.read_part(meta, offset, bytes_max)
        )
        return part

    async def close(self) -> None:
        """Finish what was begun, and end the thread."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _submit(self, work: Persist | Callable[[], Any]) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._jobs.put(_Job(work, answer))
        return answer

    # --- in the thread ---

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._carry_out(self._group(job))

    def _next(self) -> _Job | None:
        return self._held.pop() if self._held else self._jobs.get()

    def _group(self, first: _Job) -> list[_Job]:
        """The job and those behind it that may be done with the same sync."""
        group, size = [first], _size_bytes(first)
        bytes_max = self._wal.settings.group_bytes_max
        while isinstance(first.work, Persist) and len(group) < GROUP_MAX and size < bytes_max:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None or not isinstance(job.work, Persist):
                self._held.append(job)
                break
            group.append(job)
            size += _size_bytes(job)
        return group

    def _carry_out(self, group: list[_Job]) -> None:
        result: Any = None
        error: Exception | None = None
        try:
            work = group[0].work
            if isinstance(work, Persist):
                self._wal.append([job.work for job in group if isinstance(job.work, Persist)])
            else:
                result = work()
        except Exception as failure:  # noqa: BLE001 - the thread turns any failure into its callers' answer
            error = failure
        self._loop.call_soon_threadsafe(_answer, group, result, error)


def _answer(group: list[_Job], result: Any, error: Exception | None) -> None:
    for job in group:
        if job.answer.done():
            continue  # its caller was cancelled; the write happened all the same
        if error is None:
            job.answer.set_result(result)
        else:
            job.answer.set_exception(error)


def _size_bytes(job: _Job) -> int:
    if not isinstance(job.work, Persist):
        return 0
    return sum(len(entry.data) for entry in job.work.entries)

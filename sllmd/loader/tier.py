"""The DRAM tier: the async face of the loader.

All methods run on the event loop; bytes move in the threads of ``pipeline``. A *copy* is a checkpoint's
slabs and its load. It lives in ``_copies`` until it is evicted, fails, or is given up; its slabs go back to
the pool when it is not there, nobody leases it and no thread reads into it any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

import structlog

from sllmd.core.errors import InsufficientCapacity, LoadError, NodeDraining
from sllmd.core.ids import Digest
from sllmd.core.memory import PartitionMemory
from sllmd.core.units import format_bytes
from sllmd.loader.arriving import CompleteRemote
from sllmd.loader.load import Load
from sllmd.loader.peer import PeerAccess
from sllmd.loader.pipeline import Cancelled, Lane, Source
from sllmd.loader.plan import Plan, extents, plan_load
from sllmd.loader.pool import Pool
from sllmd.loader.settings import LoaderSettings
from sllmd.loader.slab import Slab
from sllmd.loader.status import CopyStats, DramStats, LoadProgress, LoadReport
from sllmd.loader.tiers import Copy, Shortage, chance_of_idle, make_room
from sllmd.loader.ways import Quarantine, Ways
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.manifest import Manifest
from sllmd.telemetry.memory import total_memory_bytes

_log = structlog.get_logger(__name__)


class _Copy:
    """A checkpoint's slabs and its load."""

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, lane: Lane, slabs: list[Slab], slab_bytes: int
    ) -> None:
        self.checkpoint = checkpoint
        self.lane = lane
        self.slabs = slabs
        self.leases: set[Lease] = set()
        self.donors: set[_Copy] = set()
        """Given-up copies whose last reads still go into slabs that this one got."""
        self.loaded = False
        self.used_at = time.monotonic()
        self.load: Load
        rest = iter(slabs)
        self.partitions = [[next(rest) for _ in range(count)] for count in plan.slabs]
        self.memory = tuple(
            PartitionMemory(
                span_bytes=partition.span_bytes,
                slab_bytes=slab_bytes,
                descriptors=tuple(slab.descriptor for slab in own),
            )
            for partition, own in zip(checkpoint.manifest.partitions, self.partitions, strict=True)
        )

    @property
    def digest(self) -> Digest:
        return self.checkpoint.manifest.digest

    @property
    def size_bytes(self) -> int:
        return self.checkpoint.manifest.size_bytes

    @property
    def quiet(self) -> bool:
        """No thread reads into its slabs."""
        return self.load.transfer.still and not self.donors

    def idle_seconds(self, now: float) -> float:
        return 0.0 if self.leases else now - self.used_at


class DramTier:
    """Checkpoints in memory that workers can map.

    ``quarantine`` and ``complete_remote`` are called from reading threads. What they raise becomes the
    load's error, or is logged where the load failed already.
    """

    def __init__(
        self,
        settings: LoaderSettings,
        *,
        quarantine: Quarantine,
        complete_remote: CompleteRemote,
        peers: PeerAccess | None = None,
    ) -> None:
        self._settings = settings
        self._ways = Ways(settings, quarantine=quarantine, complete_remote=complete_remote, peers=peers)
        self._pool = Pool(
            budget_bytes=settings.budget_bytes(total_memory_bytes()),
            slab_bytes=settings.slab_bytes,
            reserve_bytes=settings.reserve_bytes,
            headroom_bytes=settings.headroom_bytes,
            pin=settings.pin,
        )
        self._copies: dict[Digest, _Copy] = {}
        self.chance_of: Callable[[Digest], float | None] = lambda _digest: None
        """The chance that a checkpoint is asked for within ``tiers.HORIZON_SECONDS``; None: nobody knows."""
        self._leaving: list[_Copy] = []
        """Copies that failed or were given up, and still have leases or reads in flight."""
        self._closed = False

    @property
    def budget_bytes(self) -> int:
        """Memory that copies may fill, in whole slabs."""
        return self._pool.budget_slabs * self._pool.slab_bytes

    @property
    def to_device_max_bytes(self) -> int:
        """Bytes per second that may pass from here to each device; 0: no cap."""
        return self._settings.dram_bandwidth_max_bytes

    @property
    def room_bytes(self) -> int:
        """Memory that a copy can take now without any other's going."""
        return self._pool.room() * self._pool.slab_bytes

    def slab_bytes_needed(self, checkpoint: Checkpoint) -> int:
        """Memory that a copy takes: each partition fills whole slabs."""
        partitions = checkpoint.manifest.partitions
        return (
            sum(-(-each.span_bytes // self._pool.slab_bytes) for each in partitions) * self._pool.slab_bytes
        )

    def acquire(self, checkpoint: Checkpoint) -> Lease:
        """Join or begin the load of ``checkpoint``; its memory is allocated when this returns.

        Raises InsufficientCapacity when evicting every unleased copy does not make enough room,
        StoreError when its directory is gone, SourceUnavailable when it is on other nodes and none is known.
        """
        if self._closed:
            raise NodeDraining("the loader is stopping", retry_after_seconds=5.0)
        copy = self._copies.get(checkpoint.manifest.digest)
        if copy is None:
            copy = self._begin(checkpoint)
        return Lease(copy, self._released)

    def _begin(self, checkpoint: Checkpoint) -> _Copy:
        plan = plan_load(checkpoint.manifest, self._pool.slab_bytes)
        source = self._source(checkpoint)
        lane = self._ways.lane(checkpoint)
        # Whatever raises does so above: slabs without a copy that owns them would be lost.
        slabs, donors = self._allocate(checkpoint, sum(plan.slabs))
        copy = _Copy(checkpoint, plan, lane, slabs, self._pool.slab_bytes)
        # One that was just given up may still be writing the same files on SSD.
        copy.donors = donors | {other for other in self._leaving if _same_and_busy(other, checkpoint)}
        copy.load = Load(
            plan,
            copy.partitions,
            source,
            lane,
            self._settings,
            verified=self._settings.verify == "always" and all(chunk.digest for chunk in plan.chunks),
            on_over=lambda: self._over(copy),
            on_end=lambda: self._ended(copy),
        )
        self._copies[copy.digest] = copy
        copy.load.watch()
        self._start_if_free(copy)
        return copy

    def _source(self, checkpoint: Checkpoint) -> Source:
        return self._ways.source(checkpoint)

    # --- room ---

    def _allocate(self, checkpoint: Checkpoint, count: int) -> tuple[list[Slab], set[_Copy]]:
        """``count`` slabs, and the given-up copies that some of them are still draining from.

        1. free slabs  2. new ones, within budget and machine  3. those of the least worthy idle copies
        4. those of given-up loads: free as soon as their last reads return.
        """
        draining = [copy for copy in self._leaving if not copy.leases]
        room = self._pool.room() + sum(len(copy.slabs) for copy in draining)
        victims = make_room(self._candidates(), count, room)
        if isinstance(victims, Shortage):
            raise self._insufficient(checkpoint, count, victims)
        for digest in victims:
            self._drop(self._copies[digest])
        slabs = self._pool.take(min(count, self._pool.room()))
        donors: set[_Copy] = set()
        for copy in draining:
            missing = count - len(slabs)
            if missing and copy.slabs:
                slabs += copy.slabs[:missing]
                del copy.slabs[:missing]
                donors |= copy.donors
                if not copy.load.transfer.still:
                    donors.add(copy)
        self._pool.trim()
        return slabs, donors

    def _candidates(self) -> list[Copy]:
        now = time.monotonic()
        return [
            Copy(
                digest=copy.digest,
                slabs=len(copy.slabs),
                leased=bool(copy.leases) or not copy.quiet,
                idle_seconds=copy.idle_seconds(now),
                chance=self._chance(copy, now),
                reload_seconds=copy.checkpoint.manifest.size_bytes
                / self._ways.bandwidth(copy.checkpoint, copy.lane),
            )
            for copy in self._copies.values()
        ]

    def _chance(self, copy: _Copy, now: float) -> float:
        known = self.chance_of(copy.digest)
        return chance_of_idle(copy.idle_seconds(now)) if known is None else known

    def _insufficient(self, checkpoint: Checkpoint, count: int, shortage: Shortage) -> InsufficientCapacity:
        needed = format_bytes(count * self._pool.slab_bytes)
        if count > self._pool.budget_slabs:
            budget = format_bytes(self.budget_bytes)
            return InsufficientCapacity(
                f"{checkpoint.name} needs {needed} of memory, and the budget is {budget}",
                hint="raise dram_budget in [loader]",
            )
        missing = format_bytes(shortage.missing_slabs * self._pool.slab_bytes)
        copies = [*self._copies.values(), *self._leaving]
        holders = {copy.checkpoint.name for copy in copies if copy.leases or not copy.quiet}
        return InsufficientCapacity(
            f"{checkpoint.name} needs {needed} of memory, {missing} of it are missing; "
            f"in use: {', '.join(sorted(holders)) or 'nothing of sllmd, the machine has no more'}",
            hint="unload a model, or free memory on this machine",
        )

    def _drop(self, copy: _Copy) -> None:
        del self._copies[copy.digest]
        self._pool.put(copy.slabs)
        _log.info(
            "evicted", model=copy.checkpoint.name, idle_seconds=round(copy.idle_seconds(time.monotonic()), 3)
        )

    # --- the life of a copy ---

    def _over(self, copy: _Copy) -> None:
        """Its waiters were told. A failed one is nobody's to join any more: the next acquire tries again."""
        if copy.load.failed:
            self._leave(copy)

    def _ended(self, copy: _Copy) -> None:
        """No thread reads for it any more."""
        self._pool.touched(copy.slabs)
        copy.loaded = not copy.load.failed
        self._rename(copy, copy.load.transfer.source.published)
        for other in [*self._copies.values(), *self._leaving]:
            if copy in other.donors:
                other.donors.remove(copy)
                self._start_if_free(other)
        self._settle()

    def _rename(self, copy: _Copy, published: Checkpoint | None) -> None:
        """A remote checkpoint came to this node: its manifest has all checksums, and perhaps a new digest."""
        if published is None or self._copies.get(copy.digest) is not copy:
            return
        del self._copies[copy.digest]
        copy.checkpoint = published
        if copy.digest in self._copies:
            self._leaving.append(copy)
        else:
            self._copies[copy.digest] = copy

    def _start_if_free(self, copy: _Copy) -> None:
        if not copy.donors and not copy.load.transfer.ended:
            copy.load.start()

    def _released(self, copy: _Copy) -> None:
        """A lease came back. A load that nobody waits for is given up, unless all bytes are there."""
        copy.used_at = time.monotonic()
        if not copy.leases and not copy.load.transfer.ended:
            copy.load.abort(Cancelled(f"nobody waits for {copy.checkpoint.name} any more"))
        self._settle()

    def _leave(self, copy: _Copy) -> None:
        if self._copies.get(copy.digest) is copy:
            del self._copies[copy.digest]
            self._leaving.append(copy)

    def _settle(self) -> None:
        """Take back the slabs of copies that left, where nobody uses them any more."""
        for copy in [copy for copy in self._leaving if not copy.leases and copy.quiet]:
            self._leaving.remove(copy)
            self._pool.put(copy.slabs)
        self._pool.trim()

    # --- questions ---

    def where(self, checkpoint: Checkpoint) -> Literal["dram", "ssd", "peer", "remote"]:
        """The best tier that has all bytes."""
        copy = self._copies.get(checkpoint.manifest.digest)
        if copy is not None and copy.loaded:
            return "dram"
        return self._ways.way(checkpoint)

    def lend(self, digest: Digest) -> Lease | None:
        """A lease on a copy that is in DRAM whole; None: it is not."""
        copy = self._copies.get(digest)
        return Lease(copy, self._released) if copy is not None and copy.loaded and not self._closed else None

    def reload_seconds(self, checkpoint: Checkpoint) -> float:
        """How long its bytes would take were they not in DRAM, with nothing queued before them."""
        lane = self._ways.known_lane(checkpoint)
        return checkpoint.manifest.size_bytes / self._ways.bandwidth(checkpoint, lane)

    def estimate_seconds(self, checkpoint: Checkpoint) -> float:
        """How long ``acquire`` + ``loaded`` would take: what is queued before it, and its own bytes."""
        copy = self._copies.get(checkpoint.manifest.digest)
        if copy is not None and copy.loaded:
            to_device = self.to_device_max_bytes
            return copy.size_bytes / to_device if to_device else 0.0
        lane = self._ways.known_lane(checkpoint)
        queued = lane.queued_bytes() if lane else 0
        if copy is None:
            waiting = queued + checkpoint.manifest.size_bytes
        elif copy.load.transfer.began_at is None:
            waiting = queued
        else:
            waiting = copy.load.transfer.bytes_total - copy.load.transfer.bytes_done
        return waiting / self._ways.bandwidth(checkpoint, lane)

    def rates(self) -> dict[str, float]:
        """Bytes per second of each way into memory: measured, or as assumed until then; within its cap."""
        return self._ways.rates()

    def evict(self, digest: Digest) -> int:
        """Drop an unleased copy; how many bytes that freed. 0: leased or not there."""
        copy = self._copies.get(digest)
        if copy is None or copy.leases or not copy.quiet:
            return 0
        self._drop(copy)
        self._pool.trim()
        return len(copy.slabs) * self._pool.slab_bytes

    def stats(self) -> DramStats:
        """The books, now."""
        slab_bytes = self._pool.slab_bytes
        now = time.monotonic()
        copies = [*self._copies.values(), *(copy for copy in self._leaving if copy.leases)]
        draining = sum(len(copy.slabs) for copy in self._leaving if not copy.leases)
        return DramStats(
            budget_bytes=self.budget_bytes,
            slab_bytes=slab_bytes,
            used_bytes=sum(len(copy.slabs) for copy in copies) * slab_bytes,
            draining_bytes=draining * slab_bytes,
            free_bytes=self._pool.free * slab_bytes,
            pinned_bytes=self._pool.pinned_bytes,
            pin_state=self._pool.pin_state,
            page_state=self._pool.page_state,
            copies=tuple(self._copy_stats(copy, now) for copy in copies),
            bytes_per_second=self._ways.measured(),
        )

    def _copy_stats(self, copy: _Copy, now: float) -> CopyStats:
        return CopyStats(
            digest=copy.digest,
            name=copy.checkpoint.name,
            size_bytes=copy.size_bytes,
            memory_bytes=len(copy.slabs) * self._pool.slab_bytes,
            leases=len(copy.leases),
            loaded=copy.loaded,
            direct_io=copy.load.transfer.source.direct_io,
            idle_seconds=copy.idle_seconds(now),
        )

    async def close(self) -> None:
        """Give up all loads and return the memory. Holders of leases must be gone."""
        self._closed = True
        for copy in list(self._copies.values()):
            copy.load.abort(LoadError("the loader is stopping"))
        stuck = not await asyncio.to_thread(self._ways.close)
        if stuck:
            # Their slabs stay until the process ends: the kernel may still write into them.
            _log.warning("reads are stuck, leaving them behind")
        for copy in [*self._copies.values(), *self._leaving]:
            if copy.load.transfer.ended and not stuck:
                self._pool.put(copy.slabs)
        self._copies.clear()
        self._leaving.clear()
        await asyncio.to_thread(self._pool.close)


def _same_and_busy(copy: _Copy, checkpoint: Checkpoint) -> bool:
    same = copy.digest == checkpoint.manifest.digest and checkpoint.remote_url is not None
    return same and not copy.load.transfer.ended


class Lease:
    """One user's hold on a copy: while it lasts, the copy stays. Give it back when every process that
    mapped its memory is reaped.
    """

    def __init__(self, copy: _Copy, on_release: Callable[[_Copy], None]) -> None:
        self.memory = copy.memory
        self._copy = copy
        self._on_release = on_release
        copy.leases.add(self)

    @property
    def manifest(self) -> Manifest:
        """Of the copy's checkpoint."""
        return self._copy.checkpoint.manifest

    def views(self, partition: int, address_bytes: int, size_bytes: int) -> list[memoryview]:
        """Bytes of a partition, in pieces; release them before the lease. Threads may call it."""
        slabs = self._copy.partitions[partition]
        pieces = extents(address_bytes, size_bytes, slabs[0].size_bytes)
        return [slabs[piece.slab].view(piece.start, piece.stop) for piece in pieces]

    def progress(self) -> LoadProgress:
        """Of the copy's load, now."""
        return self._copy.load.progress()

    async def progress_changed(self) -> LoadProgress:
        """Wait for the next change, at most one per ``progress_interval_seconds``.

        Returns at once when the load is over: look at ``state``.
        """
        return await self._copy.load.changed()

    def bytes_ready(self) -> tuple[int, ...]:
        """How far each partition's memory is filled without a gap."""
        return self._copy.load.transfer.bytes_ready()

    async def loaded(self) -> LoadReport:
        """Wait until the memory is filled. Raises the load's error, the same to every waiter."""
        return await self._copy.load.result()

    def release(self) -> None:
        """Give it back; again is harmless. When nobody else waits for the load it is given up."""
        if self in self._copy.leases:
            self._copy.leases.remove(self)
            self._on_release(self._copy)

"""The lives of this node's replicas: brought up, idle, asleep, woken, torn down.

An idle replica sleeps after its keep-alive, or when another needs its device: on a GPU its weights, cache and
activations are given back and only the process with its CUDA context stays; on a CPU, where weights are
mapped and never copied, the cache and what was laid out anew for speed. Process, mapping and DRAM stay, so
waking it takes no worker, no mapping and no byte from disk. After as long again it ends; sooner if DRAM is
wanted, or more would sleep than ``asleep_max``.

Owns: the replicas, their keep-alive and sleep. Which one starts, sleeps or ends for another is ``agent``'s.
Invariants: one replica of a checkpoint at a time; a lease on DRAM goes back only after the worker that mapped
it is reaped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Literal

import structlog

from sllmd.core.errors import InsufficientCapacity, MemoryBusy, ModelLoadFailed, SllmdError
from sllmd.core.ids import Digest, ModelName, ReplicaId
from sllmd.engine.protocol import EngineOptions
from sllmd.engine.supervisor import Supervisor
from sllmd.loader.tier import DramTier, Lease
from sllmd.roles.admission import ReplicaState
from sllmd.roles.estimates import Estimates
from sllmd.roles.feeding import Feed
from sllmd.roles.residence import Residence
from sllmd.roles.tickets import Ticket, Tickets
from sllmd.store.checkpoint import Checkpoint

_log = structlog.get_logger(__name__)

_SLEEPING = (ReplicaState.DOZING, ReplicaState.ASLEEP)

ReplicaChange = Literal["starting", "serving", "sleeping", "failed", "stopped"]
Observer = Callable[[Residence, ReplicaChange, str | None], None]
"""Told of a replica's life; with the reason where it failed."""


class Residences:
    """See the module."""

    def __init__(
        self,
        *,
        tier: DramTier,
        supervisor: Supervisor,
        estimates: Estimates,
        tickets: Tickets,
        options: Callable[[Checkpoint], EngineOptions],
        asleep_max: int,
        pump: Callable[[], None],
        note_change: Callable[[], None],
    ) -> None:
        """``pump``: called when somebody who waits may be given what was not to be had before;
        ``note_change``: when a replica begins to stop."""
        self._tier = tier
        self._supervisor = supervisor
        self._estimates = estimates
        self._tickets = tickets
        self._options = options
        self._asleep_max = asleep_max
        self._pump = pump
        self._note_change = note_change
        self._feed = Feed(tier.to_device_max_bytes)
        self._residences: dict[tuple[ModelName, Digest], Residence] = {}
        self._replica_count = 0
        self._background: set[asyncio.Task[None]] = set()
        self.observers: list[Observer] = []
        self.put_down: set[Digest] = set()
        """Checkpoints that were taken out of DRAM on purpose, and not asked for since."""

    def __iter__(self) -> Iterator[Residence]:
        """All replicas."""
        return iter(tuple(self._residences.values()))

    def get(self, key: tuple[ModelName, Digest]) -> Residence | None:
        """The replica of what ``key`` names, if there is one in any state."""
        return self._residences.get(key)

    def find(self, checkpoint: Checkpoint) -> Residence | None:
        """The same, of a checkpoint."""
        return self.get((checkpoint.name, checkpoint.manifest.digest))

    def named(self, replica_ids: Sequence[ReplicaId]) -> list[Residence]:
        """Those with these ids."""
        return [residence for residence in self if residence.replica_id in replica_ids]

    @property
    def running(self) -> int:
        """Generations that run on them."""
        return sum(residence.running for residence in self)

    async def end(self) -> None:
        """Stop every replica; returns when all workers are reaped."""
        for residence in self:
            self.stop(residence)
        await asyncio.gather(*self._background, return_exceptions=True)

    # -- bringing up -----------------------------------------------------------------------------

    def start(self, ticket: Ticket, devices: tuple[str, ...]) -> None:
        """Bring up, or wake, what ``ticket`` waits for."""
        asleep = self._residences.get(ticket.need.key)
        if asleep is not None:
            self._wake_up(asleep, devices)
            return
        checkpoint = ticket.checkpoint
        self._replica_count += 1
        residence = Residence(
            checkpoint=checkpoint,
            need=ticket.need,
            devices=devices,
            options=self._options(checkpoint),
            tier=self._tier.where(checkpoint),
            estimate_seconds=self._estimates.startup_seconds(checkpoint, None),
            started_seconds=time.monotonic(),
            keep_alive_seconds=self._estimates.keep_alive_seconds(checkpoint),
            replica_id=ReplicaId(f"{checkpoint.name}-{self._replica_count}"),
        )
        self._residences[ticket.need.key] = residence
        self.put_down.discard(ticket.need.digest)
        self._tell(residence, "starting")
        residence.task = self._spawn(self._bring_up(residence))

    async def _bring_up(self, residence: Residence) -> None:
        """Lift the bytes and build the engine, side by side; then serve."""
        checkpoint = residence.checkpoint
        try:
            residence.lease = lease = self._acquire(checkpoint)
            residence.replica = replica = await self._supervisor.attach(
                residence.replica_id,
                checkpoint.manifest,
                lease.memory,
                residence.options,
                devices=residence.devices,
            )
            attached_seconds = time.monotonic()
            report, passing_seconds = await self._feed.pass_on(lease, replica, residence.devices)
            loaded_seconds = time.monotonic()
            await replica.begin()
        except SllmdError as error:
            self._start_failed(residence, error)
            return
        except Exception as error:  # noqa: BLE001 - a crash here becomes the waiters' answer
            _log.exception("start crashed", model=checkpoint.name)
            self._start_failed(residence, ModelLoadFailed(f"starting `{checkpoint.name}` crashed: {error!r}"))
            return
        now_seconds = time.monotonic()
        if residence.tier != "dram":
            residence.stages_seconds[f"{residence.tier}→dram"] = report.seconds
        if self._feed.bandwidth_max_bytes:
            residence.stages_seconds["dram→device"] = passing_seconds
        else:
            passing_seconds = 0.0
        bytes_there_seconds = loaded_seconds
        if residence.tier == "dram":
            bytes_there_seconds = residence.started_seconds + passing_seconds
        attach_seconds = now_seconds - bytes_there_seconds
        residence.stages_seconds["attach"] = attach_seconds
        beyond_seconds = now_seconds - max(bytes_there_seconds, attached_seconds)
        self._estimates.started(beyond_seconds)
        replica.lost.add_done_callback(lambda lost: self._on_lost(residence, lost))
        self._begin_serving(residence)

    def _begin_serving(self, residence: Residence) -> None:
        """It was started or woken."""
        now_seconds = time.monotonic()
        residence.state = ReplicaState.SERVING
        residence.resident_since_seconds = residence.last_used_seconds = now_seconds
        residence.startup_seconds = now_seconds - residence.started_seconds
        _log.info(
            "replica serves",
            model=residence.checkpoint.name,
            replica=residence.replica_id,
            startup_seconds=round(residence.startup_seconds, 3),
            estimate_seconds=round(residence.estimate_seconds, 3),
        )
        self._tell(residence, "serving")
        self.rest(residence)
        self._pump()
        if residence.unloading:
            self.close(residence)

    def _acquire(self, checkpoint: Checkpoint) -> Lease:
        """A lease. Raises InsufficientCapacity when it can never be had, MemoryBusy when not just now."""
        try:
            return self._tier.acquire(checkpoint)
        except InsufficientCapacity as error:
            if self._tier.slab_bytes_needed(checkpoint) > self._tier.budget_bytes:
                raise
            again_seconds = self._estimates.startup_seconds(checkpoint, self.find(checkpoint))
            raise MemoryBusy(error.message, retry_after_seconds=again_seconds, hint=error.hint) from error

    def _start_failed(self, residence: Residence, error: SllmdError) -> None:
        _log.error("replica failed to start", model=residence.checkpoint.name, error=str(error))
        self._tell(residence, "failed", str(error))
        residence.task = None
        self.stop(residence)
        for ticket in self._tickets:
            if ticket.need.key == residence.need.key:
                ticket.refuse(error)

    def _on_lost(self, residence: Residence, lost: asyncio.Future[str]) -> None:
        if lost.cancelled() or residence.state is ReplicaState.STOPPING:
            return
        _log.error("replica lost", model=residence.checkpoint.name, reason=lost.result())
        self._tell(residence, "failed", lost.result())
        self.stop(residence)

    def rest(self, residence: Residence) -> None:
        """Start the keep-alive clock of an idle replica."""
        seconds = residence.keep_alive_seconds
        if seconds == 0 and not self._tickets.want(residence.need.model):
            self.stop(residence)
        elif seconds != float("inf"):
            residence.expiry = asyncio.get_running_loop().call_later(seconds, self._expire, residence)

    def _expire(self, residence: Residence) -> None:
        if residence.running == 0 and residence.state is ReplicaState.SERVING:
            _log.info("replica idle for its keep-alive", model=residence.checkpoint.name)
            self.lie_down(residence)
        elif residence.state is ReplicaState.ASLEEP:
            self.stop(residence)

    # -- sleep -----------------------------------------------------------------------------------

    def lie_down(self, residence: Residence) -> None:
        """Have an idle replica sleep; those who are too many then end, worth least first."""
        if self._asleep_max == 0:
            self.stop(residence)
            return
        if residence.expiry:
            residence.expiry.cancel()
        residence.state = ReplicaState.DOZING
        self._tell(residence, "sleeping")
        residence.task = self._spawn(self._fall_asleep(residence))
        asleep = [each for each in self if each.state in _SLEEPING]
        asleep.sort(key=self._estimates.worth_seconds)
        for other in asleep[: max(0, len(asleep) - self._asleep_max)]:
            self.stop(other)

    async def _fall_asleep(self, residence: Residence) -> None:
        assert residence.replica is not None
        try:
            await residence.replica.sleep()
        except SllmdError as error:
            _log.warning("replica did not fall asleep", model=residence.checkpoint.name, reason=str(error))
            residence.task = None
            self.stop(residence)
            return
        residence.state, residence.task = ReplicaState.ASLEEP, None
        seconds = residence.keep_alive_seconds
        if seconds != float("inf"):
            residence.expiry = asyncio.get_running_loop().call_later(seconds, self._expire, residence)
        self._pump()

    def _wake_up(self, residence: Residence, devices: tuple[str, ...]) -> None:
        if residence.expiry:
            residence.expiry.cancel()
            residence.expiry = None
        residence.state, residence.devices, residence.tier = ReplicaState.STARTING, devices, "dram"
        residence.started_seconds, residence.estimate_seconds = time.monotonic(), self._estimates.wake_seconds
        residence.keep_alive_seconds = self._estimates.keep_alive_seconds(residence.checkpoint)
        self._tell(residence, "starting")
        residence.task = self._spawn(self._bring_back(residence))

    async def _bring_back(self, residence: Residence) -> None:
        replica, lease = residence.replica, residence.lease
        assert replica is not None
        assert lease is not None
        try:
            _, passing_seconds = await self._feed.pass_on(lease, replica, residence.devices)
            await replica.wake(residence.devices)
        except SllmdError as error:
            self._start_failed(residence, error)
            return
        except Exception as error:  # noqa: BLE001 - a crash here becomes the waiters' answer
            _log.exception("wake crashed", model=residence.checkpoint.name)
            crash = ModelLoadFailed(f"waking `{residence.checkpoint.name}` crashed: {error!r}")
            self._start_failed(residence, crash)
            return
        seconds = time.monotonic() - residence.started_seconds
        residence.stages_seconds = {"wake": seconds}
        if self._feed.bandwidth_max_bytes:
            residence.stages_seconds = {"dram→device": passing_seconds, "wake": seconds - passing_seconds}
        self._estimates.woken(seconds)
        self._begin_serving(residence)

    async def acquire_over_sleepers(self, checkpoint: Checkpoint) -> Lease:
        """A lease; who sleeps makes room. Raises like ``_acquire``."""
        while True:
            try:
                return self._acquire(checkpoint)
            except MemoryBusy:
                asleep = [each for each in self if each.state is ReplicaState.ASLEEP]
                if not asleep:
                    raise
                least = min(asleep, key=self._estimates.worth_seconds)
                self.stop(least)
                await least.gone.wait()

    # -- ending ----------------------------------------------------------------------------------

    async def close_when_idle(self, residence: Residence) -> None:
        """Let what runs finish, and who waits for its start be served; returns when it is gone."""
        residence.unloading = True
        if residence.state is not ReplicaState.STARTING or not self._tickets.want(residence.need.model):
            self.close(residence)
        await residence.gone.wait()

    def close(self, residence: Residence) -> None:
        """Take no new work; stop when the running work is done."""
        if residence.state is ReplicaState.SERVING:
            residence.state = ReplicaState.CLOSING
        if residence.running == 0:
            self.stop(residence)

    def stop(self, residence: Residence) -> None:
        """End a replica in any state; its devices and DRAM are free when the worker is reaped."""
        if residence.state is ReplicaState.STOPPING:
            return
        residence.state = ReplicaState.STOPPING
        self._note_change()
        if residence.expiry:
            residence.expiry.cancel()
        starting, residence.task = residence.task, None
        if starting and not starting.done():
            starting.cancel()
        residence.task = self._spawn(self._tear_down(residence, starting))

    async def _tear_down(self, residence: Residence, starting: asyncio.Task[None] | None) -> None:
        if starting:
            await asyncio.wait([starting])
        if residence.replica:
            await residence.replica.close()
        if residence.lease:
            residence.lease.release()
        del self._residences[residence.need.key]
        residence.gone.set()
        self._tell(residence, "stopped")
        self._pump()

    def _tell(self, residence: Residence, change: ReplicaChange, reason: str | None = None) -> None:
        for observer in self.observers:
            observer(residence, change, reason)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a replica's task crashed", exc_info=task.exception())

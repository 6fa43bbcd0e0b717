"""This node's replicas: who asks for one waits here, with a bound, until ``admission`` says use or start.

Owns: the replicas, the queue in front of them, their keep-alive and sleep. Knows nothing of text or HTTP.

An idle replica sleeps after its keep-alive, or when another needs its device: on a GPU its weights, cache and
activations are given back and only the process with its CUDA context stays; on a CPU, where weights are
mapped and never copied, the cache and what was laid out anew for speed. Process, mapping and DRAM stay, so
waking it takes no worker, no mapping and no byte from disk. After as long again it ends; sooner if DRAM is
wanted, or more would sleep than ``asleep_max``.

Invariants: one replica of a checkpoint at a time; keys take turns, and nobody whose turn is later starts
before somebody who waits for room; a lease on DRAM goes back only after the worker that mapped it is reaped;
a start that nobody waits for any more is cancelled, unless it is slow: whoever comes next finds it further
on. Woken by events, never polling: whatever changes calls ``_pump``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import structlog

from sllmd.core.errors import (
    InsufficientCapacity,
    MemoryBusy,
    ModelLoadFailed,
    NodeDraining,
    QueueFull,
    SllmdError,
    StartupTimeout,
)
from sllmd.core.ids import Digest, ModelName, ReplicaId
from sllmd.engine.devices import Device
from sllmd.engine.protocol import EngineOptions
from sllmd.engine.supervisor import Supervisor
from sllmd.loader.tier import DramTier, Lease
from sllmd.roles.admission import (
    DeviceView,
    Evict,
    Need,
    NodeView,
    Refuse,
    ReplicaState,
    Start,
    Use,
    Wait,
    decide,
)
from sllmd.roles.demand import Demand
from sllmd.roles.feeding import Feed
from sllmd.roles.residence import Grant, Residence
from sllmd.roles.settings import DeviceSettings, ModelSettings, ServingSettings
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.scheduler.turns import Turns
from sllmd.store.checkpoint import Checkpoint

_log = structlog.get_logger(__name__)

_SLEEPING = (ReplicaState.DOZING, ReplicaState.ASLEEP)

ReplicaChange = Literal["starting", "serving", "sleeping", "failed", "stopped"]
Observer = Callable[[Residence, ReplicaChange, str | None], None]
"""Told of a replica's life; with the reason where it failed."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """Somebody who waits."""

    checkpoint: Checkpoint
    need: Need
    granted: asyncio.Future[Grant]
    cold: bool = False
    is_request: bool = True
    """False: nothing will run on it, it only has the replica started."""
    key: str = ""
    priority: int = 0

    def was_granted(self) -> bool:
        done = self.granted.done() and not self.granted.cancelled()
        return done and self.granted.exception() is None


class Agent:
    """Grants replicas, starts and stops them."""

    def __init__(
        self,
        *,
        tier: DramTier,
        supervisor: Supervisor,
        devices: Sequence[Device],
        device_settings: DeviceSettings,
        serving_settings: ServingSettings,
        engine_options: Callable[[ModelSettings | None], EngineOptions],
        model_settings: Mapping[str, ModelSettings],
        scheduler_settings: SchedulerSettings,
    ) -> None:
        self._demand = Demand(scheduler_settings)
        self._turns = Turns()
        self._tier = tier
        tier.chance_of = lambda digest: self._demand.chance(digest, time.time())
        self._supervisor = supervisor
        self._device_settings = device_settings
        self._settings = serving_settings
        self._engine_options = engine_options
        self._model_settings = model_settings
        self._devices = tuple(_device_view(device, device_settings) for device in devices)
        self._residences: dict[tuple[ModelName, Digest], Residence] = {}
        self._lifted_bytes = 0
        self._feed = Feed(tier.to_device_max_bytes)
        self._tickets: list[_Ticket] = []
        self._wake: asyncio.TimerHandle | None = None
        self._replica_count = 0
        self._generation_seconds = 1.0
        self._start_overhead_seconds = 0.3
        self._wake_seconds = 0.1
        self._idle = asyncio.Event()
        self._idle.set()
        self._background: set[asyncio.Task[None]] = set()
        self.draining = False
        self.drained_since_seconds: float | None = None
        """Unix time since when it takes no work and nothing runs; None: it does, or something runs."""
        self.changed: Callable[[], None] = lambda: None
        """Called when replicas, what they run, or what waits for them may have changed."""
        self.keep_alive_of: Callable[[ModelName], float | None] = lambda _name: None
        """What the cluster says of a model's keep-alive, where this node's configuration says nothing."""
        self.observers: list[Observer] = []
        self.put_down: set[Digest] = set()
        """Checkpoints that were taken out of DRAM on purpose, and not asked for since."""

    # -- what the router asks ------------------------------------------------------------------

    @asynccontextmanager
    async def hold(
        self,
        checkpoint: Checkpoint,
        *,
        keep_alive_seconds: float | None = None,
        is_request: bool = True,
        key: str = "",
    ) -> AsyncGenerator[Grant, None]:
        """A replica of ``checkpoint`` for as long as the context lasts; starts it when there is none.

        ``is_request`` False: only to have it started; it does not count as somebody who waits. ``key``: whose
        request it is; keys take turns.

        Raises NodeDraining, QueueFull, StartupTimeout, and whatever keeps the model from starting.
        """
        grant = await self._grant(checkpoint, is_request=is_request, key=key)
        residence = grant.residence
        default_seconds = self.keep_alive_seconds(checkpoint)
        residence.keep_alive_seconds = default_seconds if keep_alive_seconds is None else keep_alive_seconds
        began_seconds = time.monotonic()
        try:
            yield grant
        finally:
            self._generation_seconds += 0.1 * (time.monotonic() - began_seconds - self._generation_seconds)
            self._give_back(residence)

    def residence(self, checkpoint: Checkpoint) -> Residence | None:
        """The replica of this model, if there is one in any state."""
        return self.find(checkpoint.name, checkpoint.manifest.digest)

    def find(self, model: ModelName, digest: Digest) -> Residence | None:
        """The same, by what names it."""
        return self._residences.get((model, digest))

    def residences(self) -> tuple[Residence, ...]:
        """All replicas."""
        return tuple(self._residences.values())

    def view(self) -> NodeView:
        """The node as ``admission`` sees it."""
        return NodeView(
            devices=self._devices,
            replicas=tuple(each.view(self._worth_seconds(each)) for each in self._residences.values()),
            dram_budget_bytes=self._tier.budget_bytes,
            dram_lifted_bytes=self._lifted_bytes,
            residency_min_seconds=self._settings.residency_min,
            now_seconds=time.monotonic(),
        )

    def waiting(self, model: ModelName | None = None) -> int:
        """How many requests wait for this model, or for any."""
        return sum(model in (None, ticket.need.model) and ticket.is_request for ticket in self._tickets)

    def _wanted(self, model: ModelName) -> bool:
        """Whether anybody has this model started."""
        return any(ticket.need.model == model for ticket in self._tickets)

    @property
    def rows(self) -> int:
        """Generations that a replica runs together, unless its model says otherwise."""
        return self._engine_options(None).batch_max

    @property
    def cache_bytes(self) -> int:
        """What a replica's key-value cache is given on each of its devices."""
        kv_fraction = self._device_settings.kv_cache_fraction
        return max(int((device.memory_bytes or 0) * kv_fraction) for device in self._devices)

    def context_tokens(self, checkpoint: Checkpoint, stated_tokens: int) -> int:
        """The longest prompt and completion a replica of it takes."""
        options = self._options(checkpoint)
        residence = self.residence(checkpoint)
        told_tokens = residence.replica.context_tokens if residence and residence.replica else 0
        limits = (stated_tokens, options.context_tokens_max, options.cache_tokens, told_tokens)
        return min(limit for limit in limits if limit)

    def where(self, checkpoint: Checkpoint) -> Literal["dram", "ssd", "peer", "remote"]:
        """The fastest tier that holds the checkpoint."""
        return self._tier.where(checkpoint)

    def startup_estimate_seconds(self, checkpoint: Checkpoint) -> float:
        """0 when it serves; else what its bytes or its worker take, and a start took lately beyond them."""
        residence = self.residence(checkpoint)
        if residence is not None and residence.state is ReplicaState.SERVING:
            return 0.0
        if residence is not None and residence.state is ReplicaState.ASLEEP:
            return self._wake_seconds
        there_seconds = max(self._tier.estimate_seconds(checkpoint), self._supervisor.wait_estimate_seconds())
        return there_seconds + self._start_overhead_seconds

    def missing_for(self, checkpoint: Checkpoint, *, waits: bool = False) -> str | None:
        """What keeps a replica of it from being here, or starting now; None: nothing.

        ``waits``: it may wait for others to go.
        """
        match decide(self._need(checkpoint), self.view()):
            case Refuse(missing):
                return missing
            case Wait(reason, for_room=True) if not waits:
                return reason
        return None

    # -- what an operator asks ------------------------------------------------------------------

    @asynccontextmanager
    async def lift(self, checkpoint: Checkpoint) -> AsyncIterator[Lease]:
        """The checkpoint on its way into DRAM, or there; no replica. Who sleeps makes room."""
        lease = await self._acquire_over_sleepers(checkpoint)
        size_bytes = self._tier.slab_bytes_needed(checkpoint)
        self._lifted_bytes += size_bytes
        try:
            yield lease
        finally:
            lease.release()
            self._lifted_bytes -= size_bytes
            self._pump()

    async def unload(self, checkpoint: Checkpoint, *, keep_dram: bool = False) -> tuple[int, int]:
        """Let running requests finish, stop the replica, free its DRAM. Returns (replicas, DRAM bytes)."""
        residence = self.residence(checkpoint)
        if residence is not None:
            await self._close_when_idle(residence)
        if not keep_dram:
            self.put_down.add(checkpoint.manifest.digest)
        freed_bytes = 0 if keep_dram else self._tier.evict(checkpoint.manifest.digest)
        return int(residence is not None), freed_bytes

    async def drain(self, timeout_seconds: float) -> int:
        """Take nothing new, wait for what runs. Returns how many generations were still running."""
        self.stop_taking("this node is stopping")
        if not await self.idle_within(timeout_seconds):
            _log.warning("drain timed out", running=self.running)
        return self.running

    def stop_taking(self, reason: str) -> None:
        """Take nothing new; who waits is told ``reason``."""
        self.draining = True
        self._note_drained()
        self.changed()
        for ticket in list(self._tickets):
            self._refuse(ticket, NodeDraining(reason, retry_after_seconds=1))

    async def idle_within(self, seconds: float) -> bool:
        """Wait that long until nothing runs; whether nothing does."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def resume(self) -> None:
        """Take work again: what this node was drained for does not come about."""
        self.draining = False
        self.drained_since_seconds = None
        self.changed()

    def _note_drained(self) -> None:
        if self.draining and self._idle.is_set() and self.drained_since_seconds is None:
            self.drained_since_seconds = time.time()

    async def close(self) -> None:
        """Stop every replica; returns when all workers are reaped."""
        self.draining = True
        if self._wake:
            self._wake.cancel()
        for residence in list(self._residences.values()):
            self._stop(residence)
        await asyncio.gather(*self._background, return_exceptions=True)

    # -- granting ------------------------------------------------------------------------------

    async def _grant(self, checkpoint: Checkpoint, *, is_request: bool, key: str) -> Grant:
        if self.draining:
            raise NodeDraining("this node is stopping", retry_after_seconds=1)
        self._check_queue(checkpoint)
        if is_request:
            self._demand.asked(checkpoint.manifest.digest, time.time())
        ticket = _Ticket(checkpoint, self._need(checkpoint), asyncio.get_running_loop().create_future())
        ticket.is_request, ticket.key = is_request, key
        own = self._model_settings.get(checkpoint.name)
        ticket.priority = own.priority if own is not None else 0
        self._tickets.append(ticket)
        self._pump()
        grant: Grant | None = None
        too_slow = False
        try:
            async with asyncio.timeout(self._settings.queue_timeout):
                grant = await ticket.granted
        except TimeoutError:
            too_slow = True
            raise StartupTimeout(
                f"`{checkpoint.name}` was not ready within {self._settings.queue_timeout:.0f} s",
                retry_after_seconds=self.startup_estimate_seconds(checkpoint),
                hint="see `sllmd ps` for what it waits for",
            ) from None
        finally:
            if grant is None and ticket.was_granted():  # granted and called off in the same instant
                self._give_back(ticket.granted.result().residence)
            self._forget(ticket, goes_on=too_slow)
        return grant

    def _check_queue(self, checkpoint: Checkpoint) -> None:
        """Raise QueueFull when the model's batch and its queue are both full."""
        residence = self.residence(checkpoint)
        running = residence.running if residence else 0
        batch_max = residence.options.batch_max if residence else self._options(checkpoint).batch_max
        ahead = running + self.waiting(checkpoint.name)
        if ahead < batch_max + self._settings.queue_max_per_model:
            return
        turns = 1 + (ahead - batch_max) / batch_max
        raise QueueFull(
            f"{ahead} requests for `{checkpoint.name}` are running or waiting",
            retry_after_seconds=self.startup_estimate_seconds(checkpoint) + turns * self._generation_seconds,
            hint="try again later, or raise `[serving] queue_max_per_model`",
        )

    def _pump(self) -> None:
        """Give every ticket, in turn, what ``admission`` decides for it now."""
        somebody_waits_for_room = False
        view = self.view()
        settled: set[tuple[ModelName, Digest]] = set()
        """Models for which nobody else can be given anything now."""
        for ticket in self._turns.order(each for each in self._tickets if not each.granted.done()):
            if ticket.need.key in settled:
                ticket.cold |= not self._serves(ticket.need)
                continue
            decision = decide(ticket.need, view)
            if somebody_waits_for_room and not isinstance(decision, Use | Refuse):
                settled.add(ticket.need.key)
                continue
            while isinstance(decision, Evict):
                self._evict(decision)
                decision = decide(ticket.need, self.view())
            self._carry_out(ticket, decision)
            if isinstance(decision, Wait):
                settled.add(ticket.need.key)
                somebody_waits_for_room |= decision.for_room
            if not isinstance(decision, Wait) or decision.close:
                view = self.view()
        self.changed()

    def _evict(self, decision: Evict) -> None:
        for residence in self._named(decision.replica_ids):
            if decision.sleep and residence.keep_alive_seconds > 0:
                self._lie_down(residence)
            else:
                self._stop(residence)

    def _carry_out(self, ticket: _Ticket, decision: Use | Start | Wait | Refuse) -> None:
        match decision:
            case Use():
                self._take(ticket)
            case Refuse(missing):
                self._refuse(
                    ticket, InsufficientCapacity(missing, hint="see `sllmd status` for what is free")
                )
            case Start(devices):
                ticket.cold = True
                self._start(ticket, devices)
            case Wait(close=closing, until_seconds=until_seconds):
                ticket.cold |= not self._serves(ticket.need)
                for closed in self._named(closing):
                    self._close(closed)
                if until_seconds is not None:
                    self._pump_at(until_seconds)

    def _serves(self, need: Need) -> bool:
        residence = self._residences.get(need.key)
        return residence is not None and residence.state is ReplicaState.SERVING

    def _take(self, ticket: _Ticket) -> None:
        self._turns.served(ticket)
        residence = self._residences[ticket.need.key]
        assert residence.replica is not None
        residence.running += 1
        self._idle.clear()
        residence.last_used_seconds = time.monotonic()
        if residence.expiry:
            residence.expiry.cancel()
            residence.expiry = None
        ticket.granted.set_result(Grant(residence, residence.replica, ticket.cold))

    def _give_back(self, residence: Residence) -> None:
        residence.running -= 1
        residence.last_used_seconds = time.monotonic()
        if self.running == 0:
            self._idle.set()
            self._note_drained()
        if residence.running == 0:
            if residence.state is ReplicaState.CLOSING:
                self._stop(residence)
            elif residence.state is ReplicaState.SERVING:
                self._rest(residence)
        self._pump()

    def _refuse(self, ticket: _Ticket, error: SllmdError) -> None:
        if not ticket.granted.done():
            ticket.granted.set_exception(error)

    def _forget(self, ticket: _Ticket, *, goes_on: bool) -> None:
        """Take a ticket out; a start that nobody waits for any more ``goes_on`` or is cancelled."""
        self._tickets.remove(ticket)
        residence = self._residences.get(ticket.need.key)
        starts = residence is not None and residence.state is ReplicaState.STARTING
        if residence and starts and not goes_on and not self._wanted(ticket.need.model):
            _log.info("start cancelled: nobody waits for it", model=residence.checkpoint.name)
            self._stop(residence)
        self._reopen()
        self._pump()

    def _reopen(self) -> None:
        """Those that closed for somebody serve again when nobody waits any more who needs their room."""
        if any(ticket.need.key not in self._residences for ticket in self._tickets):
            return
        for residence in self._residences.values():
            if residence.state is ReplicaState.CLOSING and not residence.unloading:
                residence.state = ReplicaState.SERVING

    # -- a replica's life ----------------------------------------------------------------------

    def _start(self, ticket: _Ticket, devices: tuple[str, ...]) -> None:
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
            estimate_seconds=self.startup_estimate_seconds(checkpoint),
            started_seconds=time.monotonic(),
            keep_alive_seconds=self.keep_alive_seconds(checkpoint),
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
        self._start_overhead_seconds += 0.3 * (beyond_seconds - self._start_overhead_seconds)
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
        self._rest(residence)
        self._pump()
        if residence.unloading:
            self._close(residence)

    def _acquire(self, checkpoint: Checkpoint) -> Lease:
        """A lease. Raises InsufficientCapacity when it can never be had, MemoryBusy when not just now."""
        try:
            return self._tier.acquire(checkpoint)
        except InsufficientCapacity as error:
            if self._tier.slab_bytes_needed(checkpoint) > self._tier.budget_bytes:
                raise
            again_seconds = self.startup_estimate_seconds(checkpoint)
            raise MemoryBusy(error.message, retry_after_seconds=again_seconds, hint=error.hint) from error

    def _start_failed(self, residence: Residence, error: SllmdError) -> None:
        _log.error("replica failed to start", model=residence.checkpoint.name, error=str(error))
        self._tell(residence, "failed", str(error))
        residence.task = None
        self._stop(residence)
        for ticket in self._tickets:
            if ticket.need.key == residence.need.key:
                self._refuse(ticket, error)

    def _on_lost(self, residence: Residence, lost: asyncio.Future[str]) -> None:
        if lost.cancelled() or residence.state is ReplicaState.STOPPING:
            return
        _log.error("replica lost", model=residence.checkpoint.name, reason=lost.result())
        self._tell(residence, "failed", lost.result())
        self._stop(residence)

    def _rest(self, residence: Residence) -> None:
        """Start the keep-alive clock of an idle replica."""
        seconds = residence.keep_alive_seconds
        if seconds == 0 and not self._wanted(residence.need.model):
            self._stop(residence)
        elif seconds != float("inf"):
            residence.expiry = asyncio.get_running_loop().call_later(seconds, self._expire, residence)

    def _expire(self, residence: Residence) -> None:
        if residence.running == 0 and residence.state is ReplicaState.SERVING:
            _log.info("replica idle for its keep-alive", model=residence.checkpoint.name)
            self._lie_down(residence)
        elif residence.state is ReplicaState.ASLEEP:
            self._stop(residence)

    # -- sleep -----------------------------------------------------------------------------------

    def _lie_down(self, residence: Residence) -> None:
        """Have an idle replica sleep; those who are too many then end, worth least first."""
        if self._settings.asleep_max == 0:
            self._stop(residence)
            return
        if residence.expiry:
            residence.expiry.cancel()
        residence.state = ReplicaState.DOZING
        self._tell(residence, "sleeping")
        residence.task = self._spawn(self._fall_asleep(residence))
        asleep = [each for each in self._residences.values() if each.state in _SLEEPING]
        asleep.sort(key=self._worth_seconds)
        for other in asleep[: max(0, len(asleep) - self._settings.asleep_max)]:
            self._stop(other)

    async def _fall_asleep(self, residence: Residence) -> None:
        assert residence.replica is not None
        try:
            await residence.replica.sleep()
        except SllmdError as error:
            _log.warning("replica did not fall asleep", model=residence.checkpoint.name, reason=str(error))
            residence.task = None
            self._stop(residence)
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
        residence.started_seconds, residence.estimate_seconds = time.monotonic(), self._wake_seconds
        residence.keep_alive_seconds = self.keep_alive_seconds(residence.checkpoint)
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
        self._wake_seconds += 0.3 * (seconds - self._wake_seconds)
        self._begin_serving(residence)

    async def _acquire_over_sleepers(self, checkpoint: Checkpoint) -> Lease:
        while True:
            try:
                return self._acquire(checkpoint)
            except MemoryBusy:
                asleep = [each for each in self._residences.values() if each.state is ReplicaState.ASLEEP]
                if not asleep:
                    raise
                least = min(asleep, key=self._worth_seconds)
                self._stop(least)
                await least.gone.wait()

    def _worth_seconds(self, residence: Residence) -> float:
        """What its going is expected to cost: the chance that it is asked for, times bringing it back."""
        chance = self._demand.chance(residence.need.digest, time.time()) or 0.0
        return chance * max(residence.startup_seconds, self._wake_seconds)

    async def _close_when_idle(self, residence: Residence) -> None:
        residence.unloading = True
        if residence.state is not ReplicaState.STARTING or not self._wanted(residence.need.model):
            self._close(residence)
        await residence.gone.wait()

    def _close(self, residence: Residence) -> None:
        """Take no new work; stop when the running work is done."""
        if residence.state is ReplicaState.SERVING:
            residence.state = ReplicaState.CLOSING
        if residence.running == 0:
            self._stop(residence)

    def _stop(self, residence: Residence) -> None:
        """End a replica in any state; its devices and DRAM are free when the worker is reaped."""
        if residence.state is ReplicaState.STOPPING:
            return
        residence.state = ReplicaState.STOPPING
        self.changed()
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

    # -- pictures and small change -------------------------------------------------------------

    def _need(self, checkpoint: Checkpoint) -> Need:
        partitions = checkpoint.manifest.partitions
        return Need(
            model=checkpoint.name,
            digest=checkpoint.manifest.digest,
            device_bytes=tuple(partition.span_bytes + self.cache_bytes for partition in partitions),
            dram_bytes=self._tier.slab_bytes_needed(checkpoint),
        )

    def _options(self, checkpoint: Checkpoint) -> EngineOptions:
        return self._engine_options(self._model_settings.get(checkpoint.name))

    def keep_alive_seconds(self, checkpoint: Checkpoint) -> float:
        """How long an idle replica of it stays ready, unless a request says otherwise."""
        own = self._model_settings.get(checkpoint.name)
        if own is not None and own.keep_alive is not None:
            return own.keep_alive
        agreed = self.keep_alive_of(checkpoint.name)
        if agreed is not None:
            return agreed
        if self._settings.keep_alive is not None:
            return self._settings.keep_alive
        load_seconds = self._tier.reload_seconds(checkpoint) + self._start_overhead_seconds
        return self._demand.keep_alive_seconds(load_seconds)

    def _named(self, replica_ids: Sequence[ReplicaId]) -> list[Residence]:
        return [residence for residence in self._residences.values() if residence.replica_id in replica_ids]

    @property
    def running(self) -> int:
        """Generations that run on this node, whoever their router is."""
        return sum(residence.running for residence in self._residences.values())

    def _pump_at(self, seconds: float) -> None:
        if self._wake:
            self._wake.cancel()
        self._wake = asyncio.get_running_loop().call_later(max(0.0, seconds - time.monotonic()), self._pump)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("a replica's task crashed", exc_info=task.exception())


def _device_view(device: Device, settings: DeviceSettings) -> DeviceView:
    memory_bytes = (
        None if device.memory_bytes is None else int(device.memory_bytes * settings.memory_fraction)
    )
    return DeviceView(device.name, settings.replicas_max, memory_bytes)

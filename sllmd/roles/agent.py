"""This node's replicas: who asks for one waits here, with a bound, until ``admission`` says use or start.

Owns: which replica starts, sleeps and ends for whom, and when the node takes work; the queue is ``tickets``,
the replicas' lives are ``residences``. Knows nothing of text or HTTP.

Invariants: keys take turns, and nobody whose turn is later starts before somebody who waits for room; a start
that nobody waits for any more is cancelled, unless it is slow: whoever comes next finds it further on. Woken
by events, never polling: whatever changes calls ``_pump``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Literal

import structlog

from sllmd.core.errors import (
    InsufficientCapacity,
    NodeDraining,
    QueueFull,
    StartupTimeout,
)
from sllmd.core.ids import Digest, ModelName
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
from sllmd.roles.estimates import Estimates
from sllmd.roles.residence import Grant, Residence
from sllmd.roles.residences import Residences
from sllmd.roles.settings import DeviceSettings, ModelSettings, ServingSettings
from sllmd.roles.tickets import Ticket, Tickets
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.store.checkpoint import Checkpoint

_log = structlog.get_logger(__name__)


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
        self._tier = tier
        self._device_settings = device_settings
        self._settings = serving_settings
        self._engine_options = engine_options
        self._model_settings = model_settings
        self._devices = tuple(_device_view(device, device_settings) for device in devices)
        self._tickets = Tickets()
        self._estimates = Estimates(
            tier,
            supervisor,
            model_settings,
            scheduler_settings,
            keep_alive_of=lambda name: self.keep_alive_of(name),  # noqa: PLW0108 - it is set later
            keep_alive_seconds=serving_settings.keep_alive,
        )
        tier.chance_of = self._estimates.chance
        self._residences = Residences(
            tier=tier,
            supervisor=supervisor,
            estimates=self._estimates,
            tickets=self._tickets,
            options=self._options,
            asleep_max=serving_settings.asleep_max,
            pump=self._pump,
            note_change=lambda: self.changed(),  # noqa: PLW0108 - it is set later
        )
        self._lifted_bytes = 0
        self._wake: asyncio.TimerHandle | None = None
        self._generation_seconds = 1.0
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False
        self.drained_since_seconds: float | None = None
        """Unix time since when it takes no work and nothing runs; None: it does, or something runs."""
        self.changed: Callable[[], None] = lambda: None
        """Called when replicas, what they run, or what waits for them may have changed."""
        self.keep_alive_of: Callable[[ModelName], float | None] = lambda _name: None
        """What the cluster says of a model's keep-alive, where this node's configuration says nothing."""
        self.observers = self._residences.observers
        self.put_down = self._residences.put_down
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
        return self._residences.find(checkpoint)

    def find(self, model: ModelName, digest: Digest) -> Residence | None:
        """The same, by what names it."""
        return self._residences.get((model, digest))

    def residences(self) -> tuple[Residence, ...]:
        """All replicas."""
        return tuple(self._residences)

    def view(self) -> NodeView:
        """The node as ``admission`` sees it."""
        return NodeView(
            devices=self._devices,
            replicas=tuple(each.view(self._estimates.worth_seconds(each)) for each in self._residences),
            dram_budget_bytes=self._tier.budget_bytes,
            dram_lifted_bytes=self._lifted_bytes,
            residency_min_seconds=self._settings.residency_min,
            now_seconds=time.monotonic(),
        )

    def waiting(self, model: ModelName | None = None) -> int:
        """How many requests wait for this model, or for any."""
        return self._tickets.requests(model)

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
        return self._estimates.startup_seconds(checkpoint, self.residence(checkpoint))

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
        lease = await self._residences.acquire_over_sleepers(checkpoint)
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
            await self._residences.close_when_idle(residence)
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
        for ticket in self._tickets:
            ticket.refuse(NodeDraining(reason, retry_after_seconds=1))

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
        await self._residences.end()

    # -- granting ------------------------------------------------------------------------------

    async def _grant(self, checkpoint: Checkpoint, *, is_request: bool, key: str) -> Grant:
        if self.draining:
            raise NodeDraining("this node is stopping", retry_after_seconds=1)
        self._check_queue(checkpoint)
        if is_request:
            self._estimates.asked(checkpoint.manifest.digest)
        ticket = Ticket(checkpoint, self._need(checkpoint), asyncio.get_running_loop().create_future())
        ticket.is_request, ticket.key = is_request, key
        own = self._model_settings.get(checkpoint.name)
        ticket.priority = own.priority if own is not None else 0
        self._tickets.add(ticket)
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
        for ticket in self._tickets.in_turn():
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
        for residence in self._residences.named(decision.replica_ids):
            if decision.sleep and residence.keep_alive_seconds > 0:
                self._residences.lie_down(residence)
            else:
                self._residences.stop(residence)

    def _carry_out(self, ticket: Ticket, decision: Use | Start | Wait | Refuse) -> None:
        match decision:
            case Use():
                self._take(ticket)
            case Refuse(missing):
                ticket.refuse(InsufficientCapacity(missing, hint="see `sllmd status` for what is free"))
            case Start(devices):
                ticket.cold = True
                self._residences.start(ticket, devices)
            case Wait(close=closing, until_seconds=until_seconds):
                ticket.cold |= not self._serves(ticket.need)
                for closed in self._residences.named(closing):
                    self._residences.close(closed)
                if until_seconds is not None:
                    self._pump_at(until_seconds)

    def _serves(self, need: Need) -> bool:
        residence = self._residences.get(need.key)
        return residence is not None and residence.state is ReplicaState.SERVING

    def _take(self, ticket: Ticket) -> None:
        self._tickets.served(ticket)
        residence = self._residences.get(ticket.need.key)
        assert residence is not None
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
                self._residences.stop(residence)
            elif residence.state is ReplicaState.SERVING:
                self._residences.rest(residence)
        self._pump()

    def _forget(self, ticket: Ticket, *, goes_on: bool) -> None:
        """Take a ticket out; a start that nobody waits for any more ``goes_on`` or is cancelled."""
        self._tickets.remove(ticket)
        residence = self._residences.get(ticket.need.key)
        starts = residence is not None and residence.state is ReplicaState.STARTING
        if residence and starts and not goes_on and not self._tickets.want(ticket.need.model):
            _log.info("start cancelled: nobody waits for it", model=residence.checkpoint.name)
            self._residences.stop(residence)
        self._reopen()
        self._pump()

    def _reopen(self) -> None:
        """Those that closed for somebody serve again when nobody waits any more who needs their room."""
        if any(self._residences.get(ticket.need.key) is None for ticket in self._tickets):
            return
        for residence in self._residences:
            if residence.state is ReplicaState.CLOSING and not residence.unloading:
                residence.state = ReplicaState.SERVING

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
        return self._estimates.keep_alive_seconds(checkpoint)

    @property
    def running(self) -> int:
        """Generations that run on this node, whoever their router is."""
        return self._residences.running

    def _pump_at(self, seconds: float) -> None:
        if self._wake:
            self._wake.cancel()
        self._wake = asyncio.get_running_loop().call_later(max(0.0, seconds - time.monotonic()), self._pump)


def _device_view(device: Device, settings: DeviceSettings) -> DeviceView:
    memory_bytes = (
        None if device.memory_bytes is None else int(device.memory_bytes * settings.memory_fraction)
    )
    return DeviceView(device.name, settings.replicas_max, memory_bytes)

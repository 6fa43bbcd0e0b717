"""What an operator asks of this node: see, load, unload, evict.

Owns: nothing; it asks the rooms and says what they say in the words of ``status``.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Literal

import sllmd
from sllmd.cluster.catalogue import records
from sllmd.cluster.catalogue.table import Table
from sllmd.core.errors import SllmdError
from sllmd.engine.devices import Device
from sllmd.engine.process import ProcessStats, process_stats
from sllmd.engine.supervisor import Supervisor
from sllmd.loader.tier import DramTier, Lease
from sllmd.roles.admission import ReplicaState
from sllmd.roles.agent import Agent
from sllmd.roles.desk import ClusterDesk
from sllmd.roles.following import Following
from sllmd.roles.moves import Moves
from sllmd.roles.residence import Residence
from sllmd.roles.resumption import Resumption
from sllmd.roles.router import Router
from sllmd.roles.status import (
    CacheStatus,
    CopyStatus,
    DeviceStatus,
    LoadedStatus,
    LoadStatus,
    NodeStatus,
    ProcessStatus,
    ReplicaStatus,
    UnloadReport,
    told_seconds,
)
from sllmd.roles.survey import Survey
from sllmd.store.checkpoint import Checkpoint
from sllmd.telemetry.supervising import end_tasks

_WAITING_STATUS_SECONDS = 0.5
"""How often somebody who waits for a load hears that it still waits."""


class Operator:
    """The node as a person sees it."""

    def __init__(
        self,
        *,
        node: str,
        store_directory: str,
        devices: Sequence[Device],
        tier: DramTier,
        supervisor: Supervisor,
        agent: Agent,
        router: Router,
        following: Following,
        resumption: Resumption,
    ) -> None:
        self._node = node
        self._store_directory = store_directory
        self._devices = devices
        self._tier = tier
        self._supervisor = supervisor
        self._agent = agent
        self._router = router
        self._started_seconds = time.monotonic()
        self.listen: tuple[str, ...] = ()
        """Where the API listens; the daemon sets it once the ports are known."""
        self.moves = Moves(router)
        """Generations that shall run elsewhere."""
        self.survey = Survey(self.loaded, router.requests)
        """What the whole cluster has loaded and remembers."""
        self.following = following
        """This node's events and log."""
        self.resumption = resumption
        """Streams that clients may come back to."""
        self.cluster: ClusterDesk | None = None
        """The daemon sets it once this node has joined."""

    @property
    def node(self) -> str:
        """This node's name."""
        return self._node

    def agreed_keys(self) -> Table[records.ApiKey] | None:
        """The cluster's API keys, as this node knows them; None while there may be others.

        After a restart it knows at first what had been agreed before. Keys of then are as good as on any node
        that is cut off; that there were none then does not tell that there are none.
        """
        if self.cluster is None:
            return None
        node = self.cluster.fleet.cluster
        keys = node.control.view().catalogue.api_keys
        return keys if keys or node.heard.is_set() else None

    @property
    def draining(self) -> bool:
        """Whether the node takes no new work."""
        return self._agent.draining

    @property
    def state(self) -> Literal["ready", "draining", "drained"]:
        """Whether it takes work, and if not, whether something still runs."""
        if not self._agent.draining:
            return "ready"
        return "draining" if self._agent.drained_since_seconds is None else "drained"

    async def load(
        self, name: str, tier: Literal["dram", "device"] = "device"
    ) -> AsyncGenerator[LoadStatus, None]:
        """Lift a model; one status per step, the last one ``ready`` or ``error``. Raises ModelNotFound."""
        checkpoint = await self._router.obtain(name)
        steps = self._load_dram(checkpoint) if tier == "dram" else self._load_device(checkpoint)
        began_seconds = time.monotonic()
        try:
            async with aclosing(steps):
                async for step in steps:
                    yield step
        except SllmdError as error:
            yield _load_status(checkpoint, "error", tier, error=error)
            return
        seconds = time.monotonic() - began_seconds
        yield _load_status(checkpoint, "ready", tier, checkpoint.manifest.size_bytes, seconds=seconds)

    async def _load_dram(self, checkpoint: Checkpoint) -> AsyncGenerator[LoadStatus, None]:
        async with self._agent.lift(checkpoint) as lease, _running(lease.loaded()) as loaded:
            async with aclosing(_follow(checkpoint, lease, loaded)) as steps:
                async for step in steps:
                    yield step
            await loaded

    async def _load_device(self, checkpoint: Checkpoint) -> AsyncGenerator[LoadStatus, None]:
        """Bring up a replica and leave it to its keep-alive."""
        async with _running(self._hold_once(checkpoint)) as granted:
            followed: Lease | None = None
            while not granted.done():
                residence = self._agent.residence(checkpoint)
                lease = residence.lease if residence else None
                if lease is not None and lease is not followed:
                    followed = lease
                    async with aclosing(_follow(checkpoint, lease, granted)) as steps:
                        async for step in steps:
                            yield step
                else:
                    yield _load_status(checkpoint, "loading", "attach" if lease else "waiting for a device")
                    await asyncio.wait([granted], timeout=_WAITING_STATUS_SECONDS)
            await granted

    async def _hold_once(self, checkpoint: Checkpoint) -> None:
        async with self._agent.hold(checkpoint):
            pass

    async def unload(self, name: str, *, keep_dram: bool = False) -> UnloadReport:
        """Stop the model's replica once its running requests are done, and free its DRAM."""
        checkpoint = self._router.checkpoint(name)
        replicas, dram_bytes = await self._agent.unload(checkpoint, keep_dram=keep_dram)
        return UnloadReport(model=checkpoint.name, device_replicas=replicas, dram_bytes=dram_bytes)

    def evict(self, name: str) -> int:
        """Free the model's copy in DRAM; 0 bytes when a replica holds it or there is none."""
        return self._tier.evict(self._router.checkpoint(name).manifest.digest)

    def replicas(self) -> list[ReplicaStatus]:
        """Loaded copies and those on their way up or down."""
        processes = {process.role: process for process in self._supervisor.stats().processes}
        return [self._replica_status(residence, processes) for residence in self._agent.residences()]

    def loaded(self) -> LoadedStatus:
        """Replicas, and copies in DRAM."""
        return LoadedStatus(node=self._node, replicas=tuple(self.replicas()), copies=self.cache().copies)

    def cache(self) -> CacheStatus:
        """The DRAM tier's books."""
        stats = self._tier.stats()
        return CacheStatus(
            budget_bytes=stats.budget_bytes,
            used_bytes=stats.used_bytes,
            reserve_bytes=stats.free_bytes,
            draining_bytes=stats.draining_bytes,
            pinned=stats.pin_state,
            pages=stats.page_state,
            copies=tuple(
                CopyStatus(
                    model=copy.name,
                    digest=copy.digest,
                    size_bytes=copy.size_bytes,
                    memory_bytes=copy.memory_bytes,
                    leases=copy.leases,
                    loaded=copy.loaded,
                    direct_io=copy.direct_io,
                    idle_seconds=copy.idle_seconds,
                )
                for copy in stats.copies
            ),
            bandwidth_bytes_per_second=dict(stats.bytes_per_second),
        )

    def status(self) -> NodeStatus:
        """The whole node at a glance."""
        replicas = self.replicas()
        workers = self._supervisor.stats()
        return NodeStatus(
            node=self._node,
            version=sllmd.__version__,
            state=self.state,
            drained_since=self._agent.drained_since_seconds,
            uptime_seconds=time.monotonic() - self._started_seconds,
            listen=self.listen,
            devices=tuple(self._device_status(device) for device in self._devices),
            models=len(self._router.models()),
            replicas=tuple(replicas),
            requests_running=sum(replica.running for replica in replicas),
            requests_waiting=self._agent.waiting(),
            cache=self.cache(),
            store_directory=self._store_directory,
            processes=tuple(process_statuses(workers.processes, replicas)),
            worker_error=workers.last_error,
            moves=self._router.mover.status(),
            mirror=self.resumption.mirror.status(),
            cluster=self.cluster.fleet.summary() if self.cluster is not None else None,
        )

    def _device_status(self, device: Device) -> DeviceStatus:
        return DeviceStatus(
            name=device.name,
            description=device.description,
            memory_bytes=device.memory_bytes,
            replicas=sum(
                device.name in residence.devices and residence.state is not ReplicaState.ASLEEP
                for residence in self._agent.residences()
            ),
        )

    def _replica_status(self, residence: Residence, processes: Mapping[str, ProcessStats]) -> ReplicaStatus:
        lease = residence.lease
        process = processes.get(residence.replica.replica_id) if residence.replica else None
        progress = lease.progress() if lease and residence.state is ReplicaState.STARTING else None
        size_bytes = residence.checkpoint.manifest.size_bytes
        idle = residence.expiry is not None and residence.running == 0
        loop_seconds = asyncio.get_running_loop().time()
        asleep = residence.state is ReplicaState.ASLEEP
        return ReplicaStatus(
            replica_id=residence.replica_id,
            model=residence.checkpoint.name,
            state=residence.state,
            devices=() if asleep else residence.devices,
            tier=progress.stage if progress else "dram" if asleep else "device",
            size_bytes=size_bytes,
            loaded_bytes=progress.bytes_done if progress else size_bytes,
            bytes_per_second=progress.bytes_per_second if progress else 0.0,
            running=residence.running,
            waiting=self._agent.waiting(residence.need.model),
            keep_alive_seconds=told_seconds(residence.keep_alive_seconds),
            expires_in_seconds=residence.expiry.when() - loop_seconds if idle and residence.expiry else None,
            pid=process.pid if process else None,
            rss_bytes=process.rss_bytes if process else None,
        )


def process_statuses(
    workers: Sequence[ProcessStats], replicas: Sequence[ReplicaStatus]
) -> Iterator[ProcessStatus]:
    """This process, then ``workers``, each with the model that it runs."""
    models = {replica.pid: replica.model for replica in replicas}
    own = process_stats("daemon", os.getpid())
    for process in [*([own] if own else []), *workers]:
        yield ProcessStatus(
            role=process.role,
            pid=process.pid,
            rss_bytes=process.rss_bytes,
            anonymous_bytes=process.anonymous_bytes,
            model=models.get(process.pid),
        )


@asynccontextmanager
async def _running(work: Coroutine[None, None, Any]) -> AsyncGenerator[asyncio.Task[Any], None]:
    """``work`` beside the body; cancelled and over when the body is left."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        yield task
    finally:
        await end_tasks(task)  # if it failed, whoever cared has awaited it


async def _follow(
    checkpoint: Checkpoint, lease: Lease, until: asyncio.Future[Any]
) -> AsyncGenerator[LoadStatus, None]:
    """A status whenever the load moves, until it is over or ``until`` is done."""
    while not until.done():
        progress = lease.progress()
        over = progress.state in ("loaded", "failed")
        yield LoadStatus(
            model=checkpoint.name,
            status="loading",
            stage="attach" if over else progress.stage,
            current_bytes=progress.bytes_done,
            total_bytes=progress.bytes_total,
            bytes_per_second=progress.bytes_per_second,
            eta_seconds=progress.eta_seconds,
        )
        if over:
            return
        changed = asyncio.ensure_future(lease.progress_changed())
        try:
            await asyncio.wait([changed, until], return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()


def _load_status(
    checkpoint: Checkpoint,
    status: Literal["loading", "ready", "error"],
    stage: str,
    current_bytes: int = 0,
    *,
    seconds: float = 0.0,
    error: SllmdError | None = None,
) -> LoadStatus:
    return LoadStatus(
        model=checkpoint.name,
        status=status,
        stage=stage,
        current_bytes=current_bytes,
        total_bytes=checkpoint.manifest.size_bytes,
        bytes_per_second=0.0,
        seconds=seconds,
        message=str(error) if error else None,
        code=error.code if error else None,
    )

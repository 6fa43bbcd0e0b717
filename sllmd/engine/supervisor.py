"""The worker processes of this node: one zygote, a few waiting workers, one worker per replica.

Owns: keeping the zygote alive and workers waiting, and turning a waiting worker into a replica. Knows
nothing of leases, devices' books or requests. Never imports torch.

One task (``_keep``) owns the pool. It starts the zygote, forks until enough workers wait, and starts over,
after a growing pause, when something ends. Just after a worker was taken it forks none unless somebody
waits for one: a fork and its warm-up would take the cores that the model's first token needs.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import structlog

from sllmd.core.errors import ModelLoadFailed
from sllmd.core.ids import ReplicaId
from sllmd.core.memory import PartitionMemory
from sllmd.engine.cores import CoreShares, compute_cores
from sllmd.engine.messages import Attach
from sllmd.engine.postmortem import Cause
from sllmd.engine.process import ProcessStats
from sllmd.engine.protocol import EngineOptions
from sllmd.engine.replica import LocalReplica, Replica
from sllmd.engine.settings import WorkerSettings
from sllmd.engine.worker_process import WorkerProcess
from sllmd.engine.worker_replica import WorkerReplica
from sllmd.engine.zygote_process import ZygoteProcess
from sllmd.store.manifest import Manifest
from sllmd.telemetry.cores import usable_cores
from sllmd.telemetry.supervising import end_tasks

_log = structlog.get_logger(__name__)

_FAILURES_BEFORE_GIVING_UP = 2
"""So many failed starts in a row, and whoever waits for a worker hears why instead of waiting on."""
_LIMITS_HINT = "raise the limits of open files and processes (ulimit -n -u, LimitNOFILE=, TasksMax=)"
_STOPS = Cause("the daemon stops")
_LEARNING = 0.3
"""How much the last start counts in what the next is thought to take."""


@dataclass(frozen=True, slots=True)
class SupervisorStats:
    """The processes as they are now."""

    processes: tuple[ProcessStats, ...]
    waiting_workers: int
    """Warm and nobody's."""
    zygote_starts: int
    last_error: str | None
    """Why the last start of a zygote or worker failed; None after one that succeeded."""


class Supervisor:
    """See the module."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._cores = CoreShares(compute_cores(usable_cores()))
        self._numbers = count(1)
        self._zygote: ZygoteProcess | None = None
        self._zygote_is_ready = False
        self._zygote_starts = 0
        self._starting: set[WorkerProcess] = set()
        self._waiting: list[WorkerProcess] = []
        self._replicas: set[WorkerReplica] = set()
        self._takers: deque[asyncio.Future[WorkerProcess]] = deque()
        self._refill_after_seconds = 0.0
        self._failures = 0
        self._last_error: Cause | None = None
        self._zygote_seconds, self._worker_seconds = 4.0, 0.5
        """What a zygote and a worker took to start lately."""
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Begin to keep workers waiting; returns at once."""
        if not self._settings.in_process:
            self._keeper = asyncio.create_task(self._keep(), name="workers")

    async def close(self) -> None:
        """End every process; returns when all are reaped."""
        self._closed = True
        await end_tasks(self._keeper)
        self._refuse_takers(_STOPS)
        workers = [*self._waiting, *self._starting]
        self._waiting.clear()
        await asyncio.gather(
            *(replica.close() for replica in tuple(self._replicas)),
            *(worker.stop(_STOPS) for worker in workers),
        )
        if self._zygote is not None:
            await self._zygote.close()

    async def attach(
        self,
        replica_id: ReplicaId,
        manifest: Manifest,
        memory: Sequence[PartitionMemory],
        options: EngineOptions,
        *,
        devices: Sequence[str] = ("cpu",),
    ) -> Replica:
        """A replica in the making: its worker has mapped ``memory`` and builds what needs no bytes.

        ``replica_id`` is what it is called everywhere, unique among those of this supervisor.

        Raises ModelLoadFailed with the last real error. Whatever way this ends without a replica, the
        process that held ``memory`` is reaped by then.
        """
        if self._settings.in_process:
            return LocalReplica(replica_id, manifest, options, self._settings.fake)
        message = Attach(
            manifest_json=manifest.model_dump_json(),
            partitions=tuple((part.span_bytes, part.slab_bytes, len(part.descriptors)) for part in memory),
            options=options,
            devices=tuple(devices),
            fake_json=self._settings.fake.model_dump_json(),
        )
        on_cpu = all(device.startswith("cpu") for device in devices)
        cores = self._cores if on_cpu and not options.threads else None
        # A waiting worker may die just as it is taken, even all of them; a fresh one is tried before anybody
        # hears of it. What a worker says itself would only be said again.
        for attempts_left in range(self._settings.waiting_workers, -1, -1):
            replica = WorkerReplica(replica_id, await self._take_worker(), self._settings, cores)
            self._adopt(replica)
            try:
                await replica.attach(message, memory)
            except ModelLoadFailed:
                await replica.close()
                if replica.worker.last_words or not attempts_left:
                    raise
            except BaseException:
                await replica.close()
                raise
            else:
                return replica
        raise AssertionError("unreachable: the last attempt returns or raises")

    def stats(self) -> SupervisorStats:
        """A snapshot; a few small reads in /proc per process."""
        named = [
            *([("zygote", self._zygote.process)] if self._zygote else []),
            *(("waiting", worker.process) for worker in (*self._waiting, *self._starting)),
            *((replica.replica_id, replica.worker.process) for replica in self._replicas),
        ]
        seen = (process.stats(role) for role, process in named)
        return SupervisorStats(
            processes=tuple(process for process in seen if process is not None),
            waiting_workers=len(self._waiting),
            zygote_starts=self._zygote_starts,
            last_error=self._last_error.message if self._last_error else None,
        )

    def wait_estimate_seconds(self) -> float:
        """How long who asks for a worker now will wait for it; 0: one waits."""
        if self._settings.in_process or any(worker.process.running for worker in self._waiting):
            return 0.0
        takers = sum(not taker.done() for taker in self._takers)
        forks = self._zygote_is_ready and self._zygote is not None and self._zygote.process.running
        return (0.0 if forks else self._zygote_seconds) + (1 + takers) * self._worker_seconds

    # -- taking ----------------------------------------------------------------------------------

    async def _take_worker(self) -> WorkerProcess:
        """A waiting worker, now or when there is one."""
        if self._closed:
            raise _load_failed(_STOPS)
        loop = asyncio.get_running_loop()
        self._refill_after_seconds = loop.time() + self._settings.refill_delay_seconds
        while self._waiting:
            worker = self._waiting.pop(0)
            if worker.process.running:
                self._changed.set()
                return worker
        if self._failures >= _FAILURES_BEFORE_GIVING_UP and self._last_error:
            raise _load_failed(self._last_error)
        taker: asyncio.Future[WorkerProcess] = loop.create_future()
        self._takers.append(taker)
        self._changed.set()
        try:
            return await taker
        except asyncio.CancelledError:
            if taker.done() and not taker.cancelled():
                self._offer(taker.result())
            raise

    def _offer(self, worker: WorkerProcess) -> None:
        """To whoever waits longest, else to the pool."""
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_result(worker)
                return
        self._waiting.append(worker)

    def _refuse_takers(self, cause: Cause) -> None:
        while self._takers:
            taker = self._takers.popleft()
            if not taker.done():
                taker.set_exception(_load_failed(cause))

    def _adopt(self, replica: WorkerReplica) -> None:
        self._replicas.add(replica)
        replica.worker.gone.add_done_callback(lambda _: self._replicas.discard(replica))

    # -- keeping ---------------------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            try:
                zygote = await self._start_zygote()
                await self._keep_workers(zygote)
                cause = await asyncio.shield(zygote.gone)
                _log.error("zygote lost", reason=cause.message, hint=cause.hint)
            except ModelLoadFailed as error:
                self._start_failed(Cause(error.message, error.hint))
            except OSError as error:
                self._start_failed(Cause(f"no further process: {error.strerror}", _LIMITS_HINT))
            await asyncio.sleep(self._backoff_seconds())

    async def _start_zygote(self) -> ZygoteProcess:
        if self._zygote is not None and self._zygote.process.running:
            return self._zygote
        self._zygote_starts += 1
        self._zygote = zygote = ZygoteProcess(self._settings)
        zygote.gone.add_done_callback(lambda _: self._changed.set())
        self._zygote_is_ready = False
        seconds = await zygote.ready()
        self._zygote_is_ready = True
        self._zygote_seconds += _LEARNING * (seconds - self._zygote_seconds)
        _log.info("zygote ready", pid=zygote.process.pid, import_seconds=round(seconds, 3))
        return zygote

    async def _keep_workers(self, zygote: ZygoteProcess) -> None:
        """Returns when the zygote is gone; raises ModelLoadFailed when a worker cannot be started."""
        log = _log.info  # the first one is news, the others are routine
        while zygote.process.running:
            self._changed.clear()
            pause_seconds = self._pause_seconds()
            if pause_seconds > 0:
                await _wait(self._changed, pause_seconds)
            else:
                await self._start_worker(zygote)
                log("worker ready", waiting=len(self._waiting))
                log = _log.debug

    def _pause_seconds(self) -> float:
        """Until the next fork, if nothing changes."""
        if any(not taker.done() for taker in self._takers):
            return 0.0
        if len(self._waiting) >= self._settings.waiting_workers:
            return float("inf")
        return max(0.0, self._refill_after_seconds - asyncio.get_running_loop().time())

    async def _start_worker(self, zygote: ZygoteProcess) -> None:
        began_seconds = time.monotonic()
        worker = await zygote.fork(next(self._numbers))
        self._starting.add(worker)
        worker.gone.add_done_callback(lambda _: self._on_gone(worker))
        timeout_seconds = self._settings.spawn_timeout_seconds
        await worker.first_of(worker.waiting, timeout_seconds)
        if not worker.waiting.done():
            worker.kill(Cause(f"the worker took longer than {timeout_seconds:.0f} s to warm up"))
            raise _load_failed(await asyncio.shield(worker.gone))
        self._starting.discard(worker)
        self._failures, self._last_error = 0, None
        self._worker_seconds += _LEARNING * (time.monotonic() - began_seconds - self._worker_seconds)
        self._offer(worker)

    def _on_gone(self, worker: WorkerProcess) -> None:
        self._starting.discard(worker)
        if worker in self._waiting:
            self._waiting.remove(worker)
            _log.warning("waiting worker lost", pid=worker.process.pid, reason=worker.gone.result().message)
            loop = asyncio.get_running_loop()
            self._refill_after_seconds = loop.time() + self._settings.refill_delay_seconds
            self._changed.set()

    def _start_failed(self, cause: Cause) -> None:
        self._failures += 1
        self._last_error = cause
        _log.error(
            "a worker could not be started", reason=cause.message, hint=cause.hint, failures=self._failures
        )
        if self._failures >= _FAILURES_BEFORE_GIVING_UP:
            self._refuse_takers(cause)

    def _backoff_seconds(self) -> float:
        doubled = self._settings.respawn_backoff_seconds_min * 2.0 ** min(self._failures, 30)
        return min(doubled, self._settings.respawn_backoff_seconds_max)


async def _wait(event: asyncio.Event, timeout_seconds: float) -> None:
    """For the event or the time, whatever comes first."""
    try:
        await asyncio.wait_for(event.wait(), None if timeout_seconds == float("inf") else timeout_seconds)
    except TimeoutError:
        return


def _load_failed(cause: Cause) -> ModelLoadFailed:
    return ModelLoadFailed(cause.message, hint=cause.hint)

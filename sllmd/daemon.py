"""The daemon: builds every room, starts them from the ground up, stops them from the roof down.

Start order: store, DRAM tier, workers, roles, cluster, API. A node that joins waits for the cluster before
it serves. Stopping: no new work, what runs moves to other nodes or finishes (or its time is up), the API
closes, the cluster hears that this node goes, workers are reaped, slabs go back.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import structlog
import uvloop

import sllmd
from sllmd.api.keys import is_loopback
from sllmd.api.server import ApiServer, check_addresses
from sllmd.cluster.home import claimed
from sllmd.cluster.joining import read_secret_file
from sllmd.cluster.node import ClusterNode
from sllmd.cluster.settings import join_address
from sllmd.config.settings import Config
from sllmd.core.errors import SllmdError
from sllmd.engine.devices import detect_devices
from sllmd.engine.supervisor import Supervisor
from sllmd.loader.sharing import Sharing
from sllmd.loader.tier import DramTier
from sllmd.roles.agent import Agent
from sllmd.roles.carriage import Carriage
from sllmd.roles.chunks import Chunks
from sllmd.roles.dataplane import DataPlane
from sllmd.roles.desk import open_desk
from sllmd.roles.draining import Draining
from sllmd.roles.following import Following
from sllmd.roles.happenings import of_start, of_stop
from sllmd.roles.library import Library
from sllmd.roles.mover import Mover
from sllmd.roles.moves import Selection
from sllmd.roles.operator import Operator
from sllmd.roles.passage import Passage
from sllmd.roles.provision import is_built_in, provision
from sllmd.roles.router import Router
from sllmd.roles.status import ClusterSummary
from sllmd.roles.watching import Watcher, record, watch_door, watch_mirror, watch_moves, watch_replicas
from sllmd.store.store import Store
from sllmd.telemetry.feed import Feed
from sllmd.telemetry.logs import configure_logs
from sllmd.telemetry.metrics import Metrics
from sllmd.telemetry.supervising import end_tasks, keep_running
from sllmd.telemetry.systemd import ServiceManager
from sllmd.telemetry.tap import LogTap
from sllmd.wire.cluster_key import parse_cluster_key
from sllmd.wire.token import parse_token

_log = structlog.get_logger(__name__)

DIRECTORY, DEV_DIRECTORY = "cluster", "dev-cluster"
"""Of a node's own files, below its data directory: playing with --dev leaves no trace in a real cluster."""
PATIENCE_SECONDS = 30.0
"""How often systemd hears that a node still waits for its cluster."""
LAG_PROBE_SECONDS = 0.05
"""How often the event loop is asked how late it is."""

Part = tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[None]]]
"""How a part of the daemon starts and how it stops, however far its start had come."""


def run(config: Config, *, dev: bool = False, token: str | None = None) -> bool:
    """Serve until SIGTERM or SIGINT; whether a second signal cut short what was still running.

    ``dev``: a cluster on this machine alone, without TLS. ``token``: to join with, before what the
    configuration names. Raises ConfigError, StoreError, JournalError, PeerRefused and OSError when it cannot
    start, and PeerRefused when the cluster no longer wants this node.
    """
    return uvloop.run(serve(config, dev=dev, token=token))


async def serve(config: Config, *, dev: bool = False, token: str | None = None) -> bool:
    """The daemon's whole life; see ``run``."""
    tap = configure_logs(config.log)
    began_seconds = time.monotonic()
    stop, stop_at_once = _stop_events()
    manager = ServiceManager.from_environment()
    async with AsyncExitStack() as rooms:
        node = cluster_node(config, dev=dev, token=token)
        starting = asyncio.create_task(Daemon.start(config, node, rooms, tap))
        await _unless(stop, _patiently(manager, starting, joining=bool(config.cluster.join)))
        if not starting.done():
            await end_tasks(starting)
            return False
        daemon = starting.result()
        manager.ready(daemon.summary())
        rooms.push_async_callback(end_tasks, keep_running(lambda: _watch_loop(manager, daemon)))
        daemon.announce(time.monotonic() - began_seconds)
        await _unless(stop, daemon.ended())
        manager.stopping(config.serving.drain_timeout)
        record(daemon.operator.following.feed, of_stop(config.node.name))
        await _unless(stop_at_once, daemon.drain(config.serving.drain_timeout))
        # Ends what outlasted the drain while the API can still tell its clients so.
        await daemon.plane.resumption.close()
        await daemon.agent.close()
    if node.failed.done() and not node.failed.cancelled():
        raise node.failed.result()
    return stop_at_once.is_set()


def cluster_node(config: Config, *, dev: bool, token: str | None) -> ClusterNode:
    """This node, not started. Raises ConfigError and PeerRefused for secrets that are none."""
    directory = config.node.data_dir / (DEV_DIRECTORY if dev else DIRECTORY)
    node = ClusterNode(config.cluster, directory=directory, name=config.node.name, dev=dev)
    node.labels = config.node.all_labels
    if config.cluster.secret_file is not None:
        node.key = parse_cluster_key(read_secret_file(config.cluster.secret_file))
    known = node.home.belonging()
    if token is None and config.cluster.token_file is not None and (known is None or known.joining):
        token = read_secret_file(config.cluster.token_file)  # a member needs none, and may have lost it
    node.token = None if token is None else parse_token(token)
    return node


class Daemon:
    """The rooms of a running daemon, introduced to each other."""

    def __init__(self, config: Config, node: ClusterNode, store: Store, tap: LogTap | None) -> None:
        """``tap``: what this process logs; None: nobody set its log up."""
        self.config = config
        self.node = node
        self.metrics = Metrics()
        told = {"node": config.node.name, "told_by": config.node.name}
        self._following = Following(Feed(config.log.kept_events, always=told), tap)
        self._store, self._library, chunks = store, Library(store), Chunks(node)
        self._devices = detect_devices(config.devices.backend, cpu_devices=config.devices.cpu_devices)
        self._tier = DramTier(
            config.loader,
            quarantine=self._library.quarantine,
            complete_remote=self._library.complete_remote,
            peers=chunks.access,
        )
        self._supervisor = Supervisor(config.workers)
        self.agent = self._make_agent()
        self.plane = self._make_plane(chunks)
        self.router = Router(self._library, self.agent, self.plane.placing, config.serving, config.migration)
        self._draining = Draining(node, self.agent, self.router)
        self.operator = self._make_operator()
        self._watcher = Watcher(self._following.feed, node)
        self._tasks: list[asyncio.Task[None]] = []
        self._server: ApiServer | None = None
        self._introduce()

    def _make_agent(self) -> Agent:
        config = self.config
        return Agent(
            tier=self._tier,
            supervisor=self._supervisor,
            devices=self._devices,
            device_settings=config.devices,
            serving_settings=config.serving,
            engine_options=config.engine.options,
            model_settings=config.models,
            scheduler_settings=config.scheduler,
        )

    def _make_plane(self, chunks: Chunks) -> DataPlane:
        config = self.config
        return DataPlane(
            self.node,
            self._library,
            self.agent,
            self._tier,
            chunks,
            directory=self.node.home.directory,
            models=config.models,
            routing=config.routing,
            serving=config.serving,
            scheduler=config.scheduler,
            mirror=config.mirror,
        )

    def _make_operator(self) -> Operator:
        return Operator(
            node=self.config.node.name,
            store_directory=str(self.config.node.store_directory),
            devices=self._devices,
            tier=self._tier,
            supervisor=self._supervisor,
            agent=self.agent,
            router=self.router,
            following=self._following,
            resumption=self.plane.resumption,
        )

    def _introduce(self) -> None:
        """Whoever answers other nodes registers with the node's methods, and observers watch, from now on."""
        node, feed, name = self.node, self._following.feed, self.config.node.name
        mirror, mover, tier = self.plane.resumption.mirror, self.router.mover, self._tier
        node.devices = {device.name: device.memory_bytes or tier.budget_bytes for device in self._devices}
        node.share = Sharing(tier, self._library.find).hold
        self._following.offer(node.methods)
        self._draining.offer(node.methods)
        moves = self.operator.moves
        moves.join(node.methods, node, lambda: [view.node for view in node.members_here()])
        self.operator.survey.join(node.methods, node, lambda: [view.node for view in node.members_here()])
        self.plane.leader.move_away = lambda model, source, target: moves.everywhere(
            Selection(model=model, source=source), target, "its device is needed"
        )
        watch_replicas(feed, self.agent, name)
        watch_door(feed, node)
        watch_mirror(feed, mirror, name)
        watch_moves(feed, mover, self._watcher.name)
        mirror.observers.append(lambda each: self.metrics.mirror_total.labels(each).inc())
        _count_moves(self.metrics, mover)

    # --- a life ---

    @classmethod
    async def start(
        cls, config: Config, node: ClusterNode, rooms: AsyncExitStack, tap: LogTap | None = None
    ) -> Daemon:
        """Start part after part; ``rooms`` stops them again in reverse, also those that had only begun."""
        if not config.node.data_dir.exists():
            check_addresses(config.api)  # else a directory would be left behind
        rooms.enter_context(claimed(config.node.data_dir))
        check_addresses(config.api)  # before a cluster is founded in vain
        store = Store(config.node.store_directory)
        store.prepare()
        if rooms.enter_context(store.attended()):
            _log.info("other daemons serve this store, too", hint="each has a DRAM budget of its own")
        daemon = cls(config, node, store, tap)
        for begin, stop in daemon._parts():
            rooms.push_async_callback(stop)
            await begin()
        record(daemon._following.feed, of_start(config.node.name, sllmd.__version__))
        return daemon

    def _parts(self) -> list[Part]:
        """From the ground up."""
        return [
            (_at_once, self._tier.close),
            (self._supervisor.start, self._supervisor.close),
            (_at_once, self.agent.close),
            (self.node.start, self.node.close),
            (self.plane.start, self.plane.close),
            (self._watcher.start, self._watcher.close),
            (self._attend, lambda: end_tasks(*self._tasks)),
            (self._open_api, self._close_api),
        ]

    async def _attend(self) -> None:
        """Be there for operators, and provide what the configuration names."""
        plane, models, drain_seconds = self.plane, self.config.models, self.config.serving.drain_timeout
        self._tasks.append(keep_running(self._draining.watch))
        self.operator.cluster = open_desk(
            self.node,
            self.agent,
            self._following,
            plane.inventories,
            self._draining,
            drain_seconds,
            plane.asking,
        )
        built_in = {name: own for name, own in models.items() if is_built_in(own)}
        await provision(self._store, self.operator, built_in)  # at once: so comes the first request
        others = {name: own for name, own in models.items() if name not in built_in}
        self._tasks.append(asyncio.create_task(provision(self._store, self.operator, others)))

    async def _open_api(self) -> None:
        self._server = ApiServer(
            router=self.router, operator=self.operator, settings=self.config.api, metrics=self.metrics
        )
        self.operator.listen = await self._server.start()

    async def _close_api(self) -> None:
        if self._server is not None:
            await self._server.close()

    async def drain(self, seconds: float) -> None:
        """What runs here moves to other nodes, and what was asked here may finish, wherever it runs."""
        assert self.operator.cluster is not None, "a daemon has started"
        deadline_seconds = time.monotonic() + seconds
        async for _ in self.operator.cluster.draining.empty(seconds):
            pass
        await self.router.idle_within(deadline_seconds - time.monotonic())

    async def ended(self) -> None:
        """Wait until this node is no member any more: it left, was removed, or turned out to be a copy."""
        assert self.operator.cluster is not None, "a daemon has started"
        left = asyncio.create_task(self.operator.cluster.departure.left.wait())
        ends: list[asyncio.Future[Any]] = [self.node.failed, left]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        left.cancel()

    def summary(self) -> str:
        """One line for ``systemctl status``."""
        try:
            status = self.operator.status()
        except SllmdError as error:  # a store that cannot be read is no reason to be killed by the watchdog
            return str(error)
        serving = sum(replica.state == "serving" for replica in status.replicas)
        loading = sum(replica.state == "starting" for replica in status.replicas)
        return (
            f"{_nodes_summary(status.cluster)}{status.models} models, {serving} serving, {loading} loading"
            f" · {status.requests_running} running, {status.requests_waiting} waiting"
        )

    def announce(self, start_seconds: float) -> None:
        """Tell the person at the terminal where to go; scripts read the first address from it."""
        status = self.operator.status()
        devices = ", ".join(device.name for device in status.devices)
        lines = [f"  sllmd {status.version} · node {status.node} · {devices}"]
        lines.append(f"  store {status.store_directory}")
        lines += [f"  api {address}" for address in status.listen]
        lines += self._about_the_cluster()
        lines.append(f"  ready in {start_seconds:.1f} s · models: {status.models} (sllmd list)")
        if not self.config.workers.in_process:
            lines.append("  the first worker takes some seconds more; a request waits for it")
        sys.stderr.write("\n".join(lines) + "\n")

    def _about_the_cluster(self) -> list[str]:
        """Where other nodes find this one, and how they join."""
        node = self.node
        others = len(node.members_here())
        known = "founded now" if node.founded else f"{others} other {'node' if others == 1 else 'nodes'}"
        lines = [f"  cluster {node.identity.cluster_id} · {known} · nodes meet at {node.address}"]
        if node.dev:
            at = join_address(node.address)
            return [*lines, f"  join it: sllmd start --dev --join {at} --name NAME"]
        if others == 0:
            lines.append("  join it: `sllmd token create` here tells what to type there")
            if is_loopback(node.address):
                lines.append("  only this machine can; open it with --cluster-listen 0.0.0.0")
        return lines


def _count_moves(metrics: Metrics, mover: Mover) -> None:
    """From now on, what changes its place."""

    def observe(_carriage: Carriage, passage: Passage) -> None:
        metrics.migrations_total.labels(passage.kind, passage.result).inc()
        if passage.result != "done":
            return
        metrics.migration_pause_seconds.labels(passage.kind).observe((passage.pause_ms or 0.0) / 1000)
        metrics.migration_tokens_total.labels(passage.kind).inc(passage.tokens)
        if passage.kind == "move":
            metrics.migration_rounds.observe(passage.rounds)

    mover.observers.append(observe)


def _nodes_summary(cluster: ClusterSummary | None) -> str:
    """How many nodes are there, and whether all is well; nothing of a node that is alone."""
    if cluster is None or sum(cluster.members.values()) < 2:
        return ""
    return f"{cluster.members.get('alive', 0)} nodes{', degraded' if cluster.degraded else ''} · "


async def _patiently(manager: ServiceManager, starting: asyncio.Task[Daemon], *, joining: bool) -> None:
    """Wait until it has started; a cluster that is away may take any time, and systemd shall not give up."""
    while not starting.done():
        if joining:
            manager.starting("waiting for the cluster", 2 * PATIENCE_SECONDS)
        await asyncio.wait([starting], timeout=PATIENCE_SECONDS)


def _stop_events() -> tuple[asyncio.Event, asyncio.Event]:
    """Set by the first and by the second SIGTERM or SIGINT; a third one ends the process as it is."""
    stop, at_once = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)

    def on_signal(number: signal.Signals) -> None:
        if not stop.is_set():
            _log.info("stopping", signal=number.name)
            stop.set()
            return
        at_once.set()
        for each in numbers:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)

    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    return stop, at_once


async def _unless(event: asyncio.Event, work: Coroutine[None, None, Any]) -> None:
    """Do ``work`` until it is done or the event is set."""
    tasks = [asyncio.create_task(work), asyncio.create_task(event.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def _watch_loop(manager: ServiceManager, daemon: Daemon) -> None:
    """Measure how late the event loop is, and feed systemd's watchdog from it: a blocked loop is caught."""
    loop = asyncio.get_running_loop()
    due_seconds = loop.time()
    while True:
        due_seconds = max(due_seconds + LAG_PROBE_SECONDS, loop.time())
        await asyncio.sleep(due_seconds - loop.time())
        daemon.metrics.event_loop_lag_seconds.observe(max(0.0, loop.time() - due_seconds))
        manager.alive(daemon.summary)


async def _at_once() -> None:
    """The start of what is there as soon as it is made."""

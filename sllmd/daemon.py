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
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any

import structlog
import uvloop

import sllmd
from sllmd.api.keys import is_loopback
from sllmd.api.server import ApiServer
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
            await _cancel(starting)
            return False
        daemon = starting.result()
        manager.ready(daemon.summary())
        rooms.push_async_callback(_cancel, asyncio.create_task(_watch_loop(manager, daemon)))
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

    def __init__(
        self,
        config: Config,
        node: ClusterNode,
        plane: DataPlane,
        agent: Agent,
        router: Router,
        operator: Operator,
        metrics: Metrics,
    ) -> None:
        self.config = config
        self.node = node
        self.plane = plane
        self.agent = agent
        self.router = router
        self.operator = operator
        self.metrics = metrics

    @classmethod
    async def start(
        cls, config: Config, node: ClusterNode, rooms: AsyncExitStack, tap: LogTap | None = None
    ) -> Daemon:
        """Build every room; ``rooms`` closes them again, whatever has been built by then.

        ``tap``: what this process logs; None: nobody set its log up.
        """
        rooms.enter_context(claimed(config.node.data_dir))
        store = Store(config.node.store_directory)
        store.prepare()
        if rooms.enter_context(store.attended()):
            _log.info("other daemons serve this store, too", hint="each has a DRAM budget of its own")
        devices = detect_devices(config.devices.backend, cpu_devices=config.devices.cpu_devices)
        library = Library(store)
        chunks = Chunks(node)
        tier = DramTier(
            config.loader,
            quarantine=library.quarantine,
            complete_remote=library.complete_remote,
            peers=chunks.access,
        )
        rooms.push_async_callback(tier.close)
        supervisor = Supervisor(config.workers)
        rooms.push_async_callback(supervisor.close)
        await supervisor.start()
        metrics = Metrics()
        agent = Agent(
            tier=tier,
            supervisor=supervisor,
            devices=devices,
            device_settings=config.devices,
            serving_settings=config.serving,
            engine_options=config.engine.options,
            model_settings=config.models,
        )
        rooms.push_async_callback(agent.close)
        told = {"node": config.node.name, "told_by": config.node.name}
        following = Following(Feed(config.log.kept_events, always=told), tap)
        following.offer(node.methods)
        watch_replicas(following.feed, agent, config.node.name)
        watch_door(following.feed, node)
        plane = DataPlane(
            node,
            library,
            agent,
            tier,
            chunks,
            directory=node.home.directory,
            models=config.models,
            routing=config.routing,
            serving=config.serving,
            scheduler=config.scheduler,
            mirror=config.mirror,
        )
        router = Router(library, agent, plane.placing, config.serving, config.migration)
        draining = Draining(node, agent, router)
        draining.offer(node.methods)
        operator = Operator(
            node=config.node.name,
            store_directory=str(config.node.store_directory),
            devices=devices,
            tier=tier,
            supervisor=supervisor,
            agent=agent,
            router=router,
            following=following,
            resumption=plane.resumption,
        )
        node.devices = {device.name: device.memory_bytes or tier.budget_bytes for device in devices}
        node.share = Sharing(tier, library.find).hold
        operator.moves.join(node.methods, node, lambda: [view.node for view in node.members_here()])
        _count_moves(metrics, router)
        plane.resumption.mirror.observers.append(lambda each: metrics.mirror_total.labels(each).inc())
        watch_mirror(following.feed, plane.resumption.mirror, config.node.name)
        # Whoever answers other nodes registers with node.methods before this.
        rooms.push_async_callback(node.close)
        await node.start()
        rooms.push_async_callback(plane.close)
        await plane.start()
        watcher = Watcher(following.feed, node.membership, node.control)
        rooms.push_async_callback(watcher.close)
        watcher.start()
        watch_moves(following.feed, router.mover, watcher.name)
        rooms.push_async_callback(_cancel, asyncio.create_task(draining.watch()))
        drain_seconds = config.serving.drain_timeout
        operator.cluster = open_desk(
            node, agent, following, plane.inventories, draining, drain_seconds, plane.asking
        )
        daemon = cls(config, node, plane, agent, router, operator, metrics)
        built_in = {name: own for name, own in config.models.items() if is_built_in(own)}
        await provision(store, operator, built_in)  # takes no time, and the first request comes at once
        others = {name: own for name, own in config.models.items() if name not in built_in}
        rooms.push_async_callback(_cancel, asyncio.create_task(provision(store, operator, others)))
        server = ApiServer(router=router, operator=operator, settings=config.api, metrics=metrics)
        rooms.push_async_callback(server.close)
        operator.listen = await server.start()
        record(following.feed, of_start(config.node.name, sllmd.__version__))
        return daemon

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


def _count_moves(metrics: Metrics, router: Router) -> None:
    """From now on, what changes its place."""

    def observe(_carriage: Carriage, passage: Passage) -> None:
        metrics.migrations_total.labels(passage.kind, passage.result).inc()
        if passage.result != "done":
            return
        metrics.migration_pause_seconds.labels(passage.kind).observe((passage.pause_ms or 0.0) / 1000)
        metrics.migration_tokens_total.labels(passage.kind).inc(passage.tokens)
        if passage.kind == "move":
            metrics.migration_rounds.observe(passage.rounds)

    router.mover.observers.append(observe)


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


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])

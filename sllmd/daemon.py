"""The daemon: builds every room, starts them from the ground up, stops them from the roof down.

Start order: store, DRAM tier, workers, roles, API. Stopping: no new work, running requests finish (or their
time is up), the API closes, workers are reaped, slabs go back.
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

from sllmd.api.server import ApiServer
from sllmd.config.settings import Config
from sllmd.core.errors import SllmdError
from sllmd.engine.devices import detect_devices
from sllmd.engine.supervisor import Supervisor
from sllmd.loader.tier import DramTier
from sllmd.roles.agent import Agent
from sllmd.roles.operator import Operator
from sllmd.roles.provision import is_built_in, provision
from sllmd.roles.router import Router
from sllmd.store.store import Store
from sllmd.telemetry.logs import configure_logs
from sllmd.telemetry.metrics import Metrics
from sllmd.telemetry.systemd import ServiceManager

_log = structlog.get_logger(__name__)

LAG_PROBE_SECONDS = 0.05
"""How often the event loop is asked how late it is."""


def run(config: Config) -> bool:
    """Serve until SIGTERM or SIGINT; whether a second signal cut short what was still running.

    Raises ConfigError, StoreError and OSError when it cannot start.
    """
    return uvloop.run(serve(config))


async def serve(config: Config) -> bool:
    """The daemon's whole life; see ``run``."""
    configure_logs(config.log)
    began_seconds = time.monotonic()
    stop, stop_at_once = _stop_events()
    async with AsyncExitStack() as rooms:
        daemon = await Daemon.start(config, rooms)
        manager = ServiceManager.from_environment()
        manager.ready(daemon.summary())
        rooms.push_async_callback(_cancel, asyncio.create_task(_watch_loop(manager, daemon)))
        daemon.announce(time.monotonic() - began_seconds)
        await stop.wait()
        manager.stopping(config.serving.drain_timeout)
        await _unless(stop_at_once, daemon.agent.drain(config.serving.drain_timeout))
        # Ends what outlasted the drain while the API can still tell its clients so.
        await daemon.agent.close()
    return stop_at_once.is_set()


class Daemon:
    """The rooms of a running daemon, introduced to each other."""

    def __init__(
        self, config: Config, agent: Agent, router: Router, operator: Operator, metrics: Metrics
    ) -> None:
        self.config = config
        self.agent = agent
        self.router = router
        self.operator = operator
        self.metrics = metrics

    @classmethod
    async def start(cls, config: Config, rooms: AsyncExitStack) -> Daemon:
        """Build every room; ``rooms`` closes them again, whatever has been built by then."""
        store = Store(config.node.store_directory)
        store.prepare()
        if rooms.enter_context(store.attended()):
            _log.info("other daemons serve this store, too", hint="each has a DRAM budget of its own")
        devices = detect_devices(config.devices.backend, cpu_devices=config.devices.cpu_devices)
        tier = DramTier(config.loader, quarantine=store.quarantine, complete_remote=store.complete_remote)
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
        router = Router(store, agent, config.serving)
        operator = Operator(
            node=config.node.name,
            store_directory=str(config.node.store_directory),
            devices=devices,
            tier=tier,
            supervisor=supervisor,
            agent=agent,
            router=router,
        )
        daemon = cls(config, agent, router, operator, metrics)
        built_in = {name: own for name, own in config.models.items() if is_built_in(own)}
        await provision(store, operator, built_in)  # takes no time, and the first request comes at once
        others = {name: own for name, own in config.models.items() if name not in built_in}
        rooms.push_async_callback(_cancel, asyncio.create_task(provision(store, operator, others)))
        server = ApiServer(router=router, operator=operator, settings=config.api, metrics=metrics)
        rooms.push_async_callback(server.close)
        operator.listen = await server.start()
        return daemon

    def summary(self) -> str:
        """One line for ``systemctl status``."""
        try:
            status = self.operator.status()
        except SllmdError as error:  # a store that cannot be read is no reason to be killed by the watchdog
            return str(error)
        serving = sum(replica.state == "serving" for replica in status.replicas)
        loading = sum(replica.state == "starting" for replica in status.replicas)
        return (
            f"{status.models} models, {serving} serving, {loading} loading"
            f" · {status.requests_running} running, {status.requests_waiting} waiting"
        )

    def announce(self, start_seconds: float) -> None:
        """Tell the person at the terminal where to go; scripts read the first address from it."""
        status = self.operator.status()
        devices = ", ".join(device.name for device in status.devices)
        lines = [f"  sllmd {status.version} · node {status.node} · {devices}"]
        lines.append(f"  store {status.store_directory}")
        lines += [f"  api {address}" for address in status.listen]
        lines.append(f"  ready in {start_seconds:.1f} s · models: {status.models} (sllmd list)")
        if not self.config.workers.in_process:
            lines.append("  the first worker takes some seconds more; a request waits for it")
        sys.stderr.write("\n".join(lines) + "\n")


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


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])

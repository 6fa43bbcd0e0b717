"""A cluster of real daemons with fake engines: started, killed, paused, restarted, asked over their sockets.

With a network of namespaces every daemon has an address of its own and traffic is TLS, as between servers;
without one they share loopback. Clients speak to each daemon's unix socket, which no partition cuts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.live import clean_environment, put_model
from tests.storm.namespaces import Namespaces

START_SECONDS = 60.0
END_SECONDS = 30.0
SETTINGS: Mapping[str, object] = {
    "workers.engine": "fake",
    "workers.in_process": True,
    "loader.headroom_bytes": 0,
    "loader.dram_budget": "64MiB",
    "devices.backend": "cpu",
    "api.access_log": False,
    "serving.residency_min": "0s",
    "serving.keep_alive": "-1",
    "serving.drain_timeout": "2s",
}
_given: set[int] = set()
"""First ports that this process gave to daemons."""


class Daemon:
    """One node; ``starts`` and ``ends`` count its lives, each before it is told."""

    def __init__(self, name: str, directory: Path, command: Sequence[str], options: Sequence[str]) -> None:
        self.name = name
        self.directory = directory
        self.socket = directory / "s.sock"
        self.starts = 0
        self.ends = 0
        self.paused = False
        self._command = command
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._http: aiohttp.ClientSession | None = None

    def start(self, *options: str) -> None:
        self.starts += 1
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(*self._command, sys.executable, "-m", "sllmd", "start", "--name", self.name),
                    *("--data-dir", str(self.directory / "data"), "--uds", str(self.socket)),
                    *(*self._options, *options),
                ],
                env=clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """As a power cut does, but for the page cache."""
        self.ends += 1
        self.signal(signal.SIGKILL)
        self.wait()

    def pause(self) -> None:
        self.paused = True
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.paused = False
        self.signal(signal.SIGCONT)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait(END_SECONDS)

    async def end(self) -> None:
        """SIGTERM, and exit status 0."""
        self.ends += 1
        self.signal(signal.SIGTERM)
        status = await asyncio.to_thread(self.wait)
        assert status == 0, f"{self.name} ended with {status}\n{self.log()}"

    @property
    def http(self) -> aiohttp.ClientSession:
        """A connection per request: who is asked is alive now, not when a connection was made."""
        if self._http is None:
            connector = aiohttp.UnixConnector(str(self.socket), limit=0, force_close=True)
            self._http = aiohttp.ClientSession("http://localhost", connector=connector)
        return self._http

    async def ask(
        self, method: str, path: str, body: object = None, *, seconds: float = 10.0
    ) -> tuple[int, Any]:
        """Status and body. Raises aiohttp.ClientError and TimeoutError."""
        timeout = aiohttp.ClientTimeout(total=seconds)
        async with self.http.request(method, path, json=body, timeout=timeout) as answer:
            return answer.status, json.loads(await answer.read())

    async def until(self, path: str, holds: Any, what: str, *, seconds: float = START_SECONDS) -> Any:
        """Ask until the answer is 200 and ``holds``; the answer."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
                status, body = await self.ask("GET", path, seconds=2)
                if status == 200 and holds(body):
                    return body
            assert self.runs, f"{self.name} ended\n{self.log()}"
            assert asyncio.get_running_loop().time() < deadline, f"never: {what}\n{self.log()}"
            await asyncio.sleep(0.02)

    async def serves(self, *, seconds: float = START_SECONDS) -> None:
        await self.until("/sllmd/v1/status", lambda _: True, f"{self.name} serves", seconds=seconds)

    def log(self) -> str:
        """Its end."""
        return (self.directory / "log").read_text(errors="replace")[-4000:]

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
        if self.runs:
            self.kill()


class Fleet:
    """Daemons of one cluster."""

    def __init__(self, daemons: list[Daemon], network: Namespaces | None) -> None:
        self.daemons = daemons
        self.network = network

    def __getitem__(self, index: int) -> Daemon:
        return self.daemons[index]

    def living(self) -> list[Daemon]:
        return [daemon for daemon in self.daemons if daemon.runs and not daemon.paused]

    async def leader(self, *, seconds: float = START_SECONDS) -> Daemon:
        """The node that most of the living call leader."""
        deadline = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < deadline:
            names = await asyncio.gather(*(self._leader_says(daemon) for daemon in self.living()))
            for daemon in self.daemons:
                if daemon.runs and names.count(daemon.name) > len(self.daemons) // 2:
                    return daemon
            await asyncio.sleep(0.02)
        raise AssertionError(f"nobody leads\n{self.daemons[0].log()}")

    async def _leader_says(self, daemon: Daemon) -> str | None:
        try:
            _, body = await daemon.ask("GET", "/sllmd/v1/members", seconds=1)
        except (aiohttp.ClientError, TimeoutError):
            return None
        leading = [member["name"] for member in body.get("members", []) if member["leader"]]
        return leading[0] if leading else None

    async def warm(self, model: str) -> None:
        """A replica on every daemon."""
        for daemon in self.daemons:
            path = f"/sllmd/v1/models/{model}/load"
            status, body = await daemon.ask("POST", path, {"tier": "device", "stream": False}, seconds=30)
            assert status == 200, body
            assert body["status"] == "ready", body

    async def settled(self, voters: int, *, seconds: float = START_SECONDS) -> None:
        """Everybody sees everybody alive, a leader, and so many voters."""

        def holds(body: Any) -> bool:
            members = body["members"]
            return (
                sum(member["state"] == "alive" for member in members) == len(self.daemons)
                and sum(member["leader"] for member in members) == 1
                and sum("voter" in member["role"] for member in members) == voters
            )

        what = f"{len(self.daemons)} members, {voters} of them voters"
        await asyncio.gather(
            *(one.until("/sllmd/v1/members", holds, what, seconds=seconds) for one in self.daemons)
        )


@asynccontextmanager
async def fleet(
    directory: Path,
    count: int,
    settings: Mapping[str, object] = {},
    *,
    network: Namespaces | None = None,
    models: Mapping[str, Sequence[int]] = {},
    fake: Mapping[str, object] = {},
    furnish: Callable[[int, Path], Mapping[str, object]] = lambda _index, _home: {},
) -> AsyncIterator[Fleet]:
    """``count`` daemons that joined one another; ``models``: which daemons hold which checkpoint.

    ``furnish`` puts into a daemon's home what it has beyond that; its settings are that daemon's own.
    """
    daemons = []
    for index in range(count):
        home = directory / f"n{index}"
        home.mkdir(parents=True)
        for model, holders in models.items():
            if index in holders:
                put_model(home, model, fake)
        own = furnish(index, home)
        (home / "sllmd.toml").write_text(_toml({**SETTINGS, **settings, **own}))
        host = network.address(index) if network else f"127.0.0.1:{_free_ports(3)}"
        options = ["--config", str(home / "sllmd.toml"), "--cluster-listen", host]
        options += ["--listen", "127.0.0.1:0"]
        daemons.append(Daemon(f"n{index}", home, network.command(index) if network else (), options))
    group = Fleet(daemons, network)
    try:
        await _join(group)
        yield group
    finally:
        await asyncio.gather(*(daemon.close() for daemon in daemons))


async def _join(group: Fleet) -> None:
    first, *others = group.daemons
    first.start()
    await first.serves()
    if not others:
        return
    _, made = await first.ask("POST", "/sllmd/v1/tokens", {"uses": len(others)})
    address = await first.until(
        "/sllmd/v1/members", lambda body: body["members"][0].get("address"), "the founder has an address"
    )
    for daemon in others:
        daemon.start("--join", address["members"][0]["address"], "--token", made["token"])
    await asyncio.gather(*(daemon.serves() for daemon in others))


def _free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody has now: a daemon keeps them through its lives, as
    servers do. Below those that the kernel gives to connections.
    """
    for first in range(12_000, 30_000, 10):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + count):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    probe = stack.enter_context(socket.socket(socket.AF_INET, kind))
                    probe.bind(("127.0.0.1", port))
            if first not in _given:
                _given.add(first)
                return first
    raise AssertionError("no free ports")


def _toml(values: Mapping[str, object]) -> str:
    # JSON's strings, numbers and booleans are TOML's.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())

"""A daemon as its owner has it: ``sllmd start`` in a process of its own, spoken to over HTTP.

Owns: starting it, asking it, and its end, after which no process of it may be left. All of it is synchronous;
tests that need many connections at once bring their own client.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from sllmd.store.builtin import make_builtin
from sllmd.store.importing import import_checkpoint
from sllmd.store.manifest import Manifest
from sllmd.store.store import Store
from tests.waiting import until

START_SECONDS = 90.0
"""The zygote imports torch; on a busy machine that takes a while."""
END_SECONDS = 60.0
FAKE = {"workers.engine": "fake"}
"""Settings of a daemon whose workers are real processes with made-up tokens: it starts at once."""
NO_LAPTOP = {
    "devices.backend": "cpu",
    "loader.dram_budget": "256MiB",
    "serving.drain_timeout": "5s",
    "cluster.listen": "127.0.0.1:0",
}
"""What ``--dev`` would say, where TLS is wanted."""
_MARK = "TEST_OF_SLLMD"
_ADDRESS = re.compile(r"^  api (http://\S+)$")


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def error(self) -> dict[str, Any]:
        return self.body["error"]


@dataclass
class LiveDaemon:
    """A daemon that serves."""

    process: subprocess.Popen[str]
    directory: Path
    mark: str
    url: str = ""
    lines: list[str] = field(default_factory=list)
    """What it wrote to stderr so far."""

    @property
    def store(self) -> Path:
        return self.directory / "data" / "store"

    @property
    def socket(self) -> Path:
        return self.directory / "s.sock"

    def ask(self, path: str, body: object = None, *, url: str | None = None) -> Answer:
        """GET, or POST where there is a body."""
        with asking(url or self.url, path, body) as response:
            return Answer(response.status, dict(response.getheaders()), response.read())

    def complete(self, model: str, prompt: object = "hi", **fields: object) -> Answer:
        return self.ask("/v1/completions", {"model": model, "prompt": prompt, **fields})

    @contextmanager
    def streaming(
        self, model: str, *, url: str | None = None, **fields: object
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """A streamed completion, event by event; leaving early hangs up."""
        body = {"model": model, "prompt": "hi", "stream": True, **fields}
        with asking(url or self.url, "/v1/completions", body) as response:
            assert response.status == 200, response.read()
            yield events(response)

    def status(self) -> dict[str, Any]:
        return self.ask("/sllmd/v1/status").body

    def requests(self) -> list[dict[str, Any]]:
        return self.ask("/sllmd/v1/requests").body["requests"]

    def worker_pid(self, model: str) -> int:
        """The process that holds the replica of ``model``."""
        [pid] = [each["pid"] for each in self.status()["replicas"] if each["model"] == model]
        assert isinstance(pid, int)
        return pid

    def copies(self) -> dict[str, dict[str, Any]]:
        """Checkpoints in DRAM, by model."""
        return {copy["model"]: copy for copy in self.ask("/sllmd/v1/cache").body["copies"]}

    def family(self) -> set[int]:
        """Pids of this daemon and of everything that it started, orphans too."""
        return {pid for pid in all_pids() if _marked(pid, self.mark)}

    def log(self) -> list[dict[str, Any]]:
        """The structured lines."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def said(self, event: str) -> bool:
        """Whether the log has this event."""
        return any(line["event"] == event for line in self.log())

    def end(self) -> None:
        """SIGTERM, exit status 0, nobody left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(END_SECONDS) == 0, "\n".join(self.lines[-40:])
        until(lambda: not self.family(), "all processes end")


@contextmanager
def live_daemon(
    directory: Path,
    settings: Mapping[str, object] = {},
    *,
    config: str = "",
    environment: Mapping[str, str] = {},
    dev: bool = True,
) -> Iterator[LiveDaemon]:
    """``sllmd start --dev`` below ``directory``, with ``settings`` by key; ``config``: TOML beside them."""
    daemon = start(directory, settings, config=config, environment=environment, dev=dev)
    try:
        announced(daemon)
        yield daemon
        daemon.end()
    finally:
        left = daemon.family()
        for pid in left:
            with suppress(ProcessLookupError):  # it may be on its way out
                os.kill(pid, signal.SIGKILL)
        daemon.process.wait()
    assert not left


def start(
    directory: Path,
    settings: Mapping[str, object] = {},
    *,
    config: str = "",
    environment: Mapping[str, str] = {},
    dev: bool = True,
) -> LiveDaemon:
    """A daemon on its way up; ``announced`` waits for it. Whoever calls this ends it.

    Not ``dev``: with TLS between nodes, and without the model ``tiny``.
    """
    directory.mkdir(exist_ok=True, parents=True)
    (directory / "sllmd.toml").write_text(config)
    values = {"loader.headroom_bytes": 0, **({} if dev else NO_LAPTOP), **settings}
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "sllmd", "start", "--config", directory / "sllmd.toml"),
            *(["--dev"] if dev else []),
            *("--data-dir", directory / "data", "--uds", directory / "s.sock"),
            *([] if "api.listen" in values else ["--listen", "127.0.0.1:0"]),
            *(argument for key, value in values.items() for argument in ("--set", f"{key}={value}")),
        ],
        env=clean_environment() | environment | {_MARK: mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    daemon = LiveDaemon(process, directory, mark)
    threading.Thread(target=_listen, args=(daemon,), daemon=True).start()
    return daemon


def announced(daemon: LiveDaemon) -> None:
    """Wait until it serves."""
    until(
        lambda: (
            any(line.startswith("  ready in") for line in daemon.lines) or daemon.process.poll() is not None
        ),
        "the daemon serves",
        START_SECONDS,
    )
    found = [match[1] for line in daemon.lines if (match := _ADDRESS.match(line))]
    assert found, "\n".join(daemon.lines)
    daemon.url = found[0]


def _listen(daemon: LiveDaemon) -> None:
    assert daemon.process.stderr is not None
    with daemon.process.stderr as stream:
        for line in stream:
            daemon.lines.append(line.rstrip("\n"))


@contextmanager
def asking(url: str, path: str, body: object = None) -> Iterator[http.client.HTTPResponse]:
    """One request on a connection of its own, which is closed afterwards whatever is left to read."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Data of server-sent events as they arrive, up to [DONE]; AssertionError when the stream just ends."""
    while line := response.readline():
        text = line.decode().strip()
        if text == "data: [DONE]":
            assert response.readline() == b"\n"
            assert response.read() == b""
            return
        if text.startswith("data: "):
            yield json.loads(text.removeprefix("data: "))
    raise AssertionError("the stream ended without [DONE]")


def put_model(directory: Path, name: str, fake: Mapping[str, object] = {}) -> Manifest:
    """The built-in model as ``name`` in the store of a daemon in ``directory``; ``fake``: its behaviour."""
    source = directory / "sources" / name
    source.parent.mkdir(exist_ok=True, parents=True)
    make_builtin("tiny", source)
    config = json.loads((source / "config.json").read_text())
    # Different bytes of config.json make a different digest: models must not share a copy in DRAM.
    (source / "config.json").write_text(json.dumps(config | {"fake": dict(fake), "_name_or_path": name}))
    store = Store(directory / "data" / "store")
    return import_checkpoint(store, str(source), name=name, on_progress=lambda _: None).manifest


def clean_environment() -> dict[str, str]:
    """This process's environment without anybody's sllmd settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLLMD_")}


def program(name: str) -> str:
    """The path of a program that a test needs; without it the test is skipped, and fails in CI."""
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    return path if path is not None else missing(f"{name} is not installed")


def missing(reason: str) -> Any:
    """Skip the test, but in CI everything has to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def all_pids() -> set[int]:
    """Every process there is."""
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}


def _marked(pid: int, mark: str) -> bool:
    # A zombie has no environment any more, and holds nothing.
    try:
        return f"{_MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False


def smaps_bytes(pid: int, field_name: str) -> int:
    """A sum of /proc/PID/smaps_rollup."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{field_name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field_name} in smaps_rollup")

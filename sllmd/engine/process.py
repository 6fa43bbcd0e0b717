"""A child process as the daemon sees it: what it prints, and that and how it ended.

Owns: a pidfd, the reading end of the pipe behind stdout and stderr. The process may be a grandchild (a worker
is the zygote's child): its status then comes through ``tell_exit_code``. Invariant: when ``exited`` is
resolved, the process holds no memory and no descriptor any more.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import structlog

from sllmd.engine.settings import WorkerSettings

_log = structlog.get_logger(__name__)

LAST_WORDS_SECONDS = 0.5
"""How long an exit waits for its status and the rest of its output; they come with it, normally."""
_READ_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ProcessStats:
    """A process of this daemon.

    Both sizes count pages that processes share: a worker's ``rss_bytes`` hold the model's pages in the DRAM
    tier, its ``anonymous_bytes`` what it has not yet overwritten of the zygote's (250 MB). What is a waiting
    worker's alone is about 15 MB, which the kernel takes 10 ms to tell (PSS): too long for the event loop.
    """

    role: str
    """``zygote``, ``waiting`` or the replica's id."""
    pid: int
    rss_bytes: int
    anonymous_bytes: int


class Output:
    """The last lines that a process printed; every line also goes to the log."""

    def __init__(self, descriptor: int, name: str, settings: WorkerSettings) -> None:
        self.lines: deque[str] = deque(maxlen=settings.output_lines_max)
        self.ended = asyncio.Event()
        self.name = name
        self._line_bytes_max = settings.output_line_bytes_max
        self._partial = b""
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._readable)

    def close(self) -> None:
        """Stop reading; idempotent."""
        if not self.ended.is_set():
            self.ended.set()
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._take(self._partial)

    def _readable(self) -> None:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        *lines, rest = (self._partial + data).split(b"\n")
        for line in lines:
            self._take(line)
        self._partial = rest[: self._line_bytes_max]

    def _take(self, line: bytes) -> None:
        text = line[: self._line_bytes_max].decode(errors="replace").rstrip()
        if text:
            self.lines.append(text)
            _log.info("process output", process=self.name, line=text)


def process_stats(role: str, pid: int) -> ProcessStats | None:
    """The memory of a process now; None when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    sizes = dict(line.split(":", 1) for line in status.splitlines() if line.startswith(("VmRSS", "RssAnon")))
    if "VmRSS" not in sizes:
        return None
    return ProcessStats(role, pid, _kb_to_bytes(sizes["VmRSS"]), _kb_to_bytes(sizes["RssAnon"]))


class ChildProcess:
    """A process, from its pid and pidfd to its end."""

    def __init__(self, pid: int, pidfd: int, output: Output) -> None:
        self.pid = pid
        self.output = output
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._exit_code: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._on_end)
        self.exited: asyncio.Task[int | None] = asyncio.create_task(self._exit(), name=f"exit of {pid}")
        """Resolved with the exit code, negative for a signal, None when nobody can tell."""

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.is_set()

    def kill(self) -> None:
        """End it now, whatever state it is in."""
        if self.running:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def tell_exit_code(self, exit_code: int) -> None:
        """What its parent, the zygote, saw."""
        if not self._exit_code.done():
            self._exit_code.set_result(exit_code)

    def stats(self, role: str) -> ProcessStats | None:
        """Its memory now; None when it has ended."""
        return process_stats(role, self.pid) if self.running else None

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._reap()
        self._ended.set()

    def _reap(self) -> None:
        """Ours to reap when it is our own child, or was left to us by a zygote that died before it."""
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return
        if result is not None:
            exited = result.si_code == os.CLD_EXITED
            self.tell_exit_code(result.si_status if exited else -result.si_status)

    async def _exit(self) -> int | None:
        await self._ended.wait()
        await asyncio.wait([self._exit_code], timeout=LAST_WORDS_SECONDS)
        try:
            await asyncio.wait_for(self.output.ended.wait(), LAST_WORDS_SECONDS)
        except TimeoutError:
            self.output.close()  # somebody else holds the pipe
        os.close(self._pidfd)
        return self._exit_code.result() if self._exit_code.done() else None


def _kb_to_bytes(text: str) -> int:
    return int(text.split(maxsplit=1)[0]) * 1024

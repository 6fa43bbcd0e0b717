"""The zygote as the daemon sees it: spawned, asked for workers, watched.

Owns: starting one zygote and handing descriptors over. When it ends, so do its workers; starting another is
the supervisor's business.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from sllmd.core.errors import ModelLoadFailed, ProtocolError
from sllmd.engine.messages import Exited, Fork, Forked, ForkFailed, Message, ZygoteReady
from sllmd.engine.peer import Peer
from sllmd.engine.postmortem import Cause
from sllmd.engine.process import ChildProcess, Output
from sllmd.engine.settings import WorkerSettings
from sllmd.engine.worker_process import WorkerProcess

_T = TypeVar("_T")

CONTROL_DESCRIPTOR = 3
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # a worker has the model's files and no business on the network
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONFAULTHANDLER": "1",  # a crash in native code prints where
}


class ZygoteProcess(Peer):
    """A running zygote."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Spawn it; ``ready`` tells when it can fork. Raises OSError when the system gives no more."""
        self._workers: dict[int, WorkerProcess] = {}
        self._forks: dict[int, asyncio.Future[int]] = {}
        """Worker id -> its pid, to come."""
        self._ready: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        with ExitStack() as ours:
            with ExitStack() as theirs:
                connection, reading, control, writing = _connections(ours, theirs)
                pid = _spawn(settings, control, writing)
            ours.callback(_end, pid)
            pidfd = os.pidfd_open(pid)
            ours.pop_all()
        process = ChildProcess(pid, pidfd, Output(reading, "zygote", settings))
        super().__init__("the zygote", process, connection, settings)

    async def ready(self) -> float:
        """Seconds its imports took, when they are done. Raises ModelLoadFailed when they cannot be."""
        return await self._answer(self._ready, "import the engine")

    async def fork(self, worker_id: int) -> WorkerProcess:
        """A new worker. Raises ModelLoadFailed when there can be none, OSError without descriptors."""
        answer = self._forks[worker_id] = asyncio.get_running_loop().create_future()
        try:
            with ExitStack() as ours:
                with ExitStack() as theirs:
                    connection, reading, remote, writing = _connections(ours, theirs)
                    self.send(Fork(worker_id), [remote, writing])
                    await self.drained()
                pid = await self._answer(answer, "fork a worker")
                pidfd = _open_child_of(self.process.pid, pid)
                ours.pop_all()
        finally:
            del self._forks[worker_id]
        process = ChildProcess(pid, pidfd, Output(reading, f"worker {worker_id}", self._settings))
        worker = WorkerProcess(worker_id, process, connection, self._settings)
        self._workers[worker_id] = worker
        worker.gone.add_done_callback(lambda _: self._workers.pop(worker_id, None))
        return worker

    async def close(self) -> None:
        """Hang up; it ends, and with it every worker that is left. Returns when all are reaped."""
        self._channel.close()
        await self.reaped(self._settings.stop_timeout_seconds)
        await asyncio.gather(*(worker.gone for worker in tuple(self._workers.values())))

    async def _answer(self, answer: asyncio.Future[_T], what: str) -> _T:
        timeout_seconds = self._settings.spawn_timeout_seconds
        await self.first_of(answer, timeout_seconds)
        if answer.done():
            return answer.result()
        self.kill(Cause(f"the zygote took longer than {timeout_seconds:.0f} s to {what}"))
        cause = await asyncio.shield(self.gone)
        raise ModelLoadFailed(cause.message, hint=cause.hint)

    def _take(self, message: Message, descriptors: list[int]) -> None:  # noqa: ARG002 - none come
        match message:
            case ZygoteReady() if not self._ready.done():
                self._ready.set_result(message.seconds)
            case Forked() if message.worker_id in self._forks:
                self._forks[message.worker_id].set_result(message.pid)
            case ForkFailed() if message.worker_id in self._forks:
                self._forks[message.worker_id].set_exception(ModelLoadFailed(message.reason))
            case Exited():
                if message.worker_id in self._workers:
                    self._workers[message.worker_id].process.tell_exit_code(message.exit_code)
            case Forked() | ForkFailed():
                pass  # whoever asked has given up; the worker ends because its socket is closed
            case _:
                raise ProtocolError(f"a zygote sent {type(message).__name__}")


def _connections(ours: ExitStack, theirs: ExitStack) -> tuple[socket.socket, int, int, int]:
    """A socket and the reading end of a pipe, for us; a socket and the writing end, for a child."""
    connection, remote = socket.socketpair()
    ours.enter_context(connection)
    theirs.enter_context(remote)
    reading, writing = os.pipe()
    ours.callback(os.close, reading)
    theirs.callback(os.close, writing)
    return connection, reading, remote.fileno(), writing


def _open_child_of(parent_pid: int, pid: int) -> int:
    """A pidfd of ``pid``; ModelLoadFailed when it has ended already, OSError without descriptors.

    Opened here and not sent by the zygote: where there is no room for it, only this worker is lost, not the
    connection. Whoever has the zygote for a parent is a worker, and not a stranger with a reused pid.
    """
    with ExitStack() as opened:
        try:
            pidfd = os.pidfd_open(pid)
            opened.callback(os.close, pidfd)
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        except (ProcessLookupError, FileNotFoundError):
            parent = ""
        if parent != str(parent_pid):
            raise ModelLoadFailed("the worker ended as soon as it was forked")
        opened.pop_all()
    return pidfd


def _end(pid: int) -> None:
    """End and reap a child that cannot be watched."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _spawn(settings: WorkerSettings, control: int, output: int) -> int:
    """A new interpreter that inherits nothing but these two descriptors."""
    arguments = [
        sys.executable,
        "-P",  # what lies in the working directory is no module of ours
        "-m",
        "sllmd.engine.zygote",
        f"--engine={settings.engine}",
        f"--frame-bytes-max={int(settings.frame_bytes_max)}",
        f"--parent-pid={os.getpid()}",
    ]
    actions = (
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
        (os.POSIX_SPAWN_DUP2, control, CONTROL_DESCRIPTOR),
    )
    return os.posix_spawn(sys.executable, arguments, {**os.environ, **_ENVIRONMENT}, file_actions=actions)

"""The zygote: everything that is slow to import, imported once, then forked into workers.

Run as ``python -m sllmd.engine.zygote`` by the supervisor, with its control socket as descriptor 3. It has
one thread, runs no torch operation with more than one (a fork after that hangs the child's first parallel
operation), and never touches CUDA. It ends with the daemon, and its workers end with it: by the end of their
socket, and, should they be stuck, by PR_SET_PDEATHSIG. (That signal comes when the *thread* that forked
ends: the daemon spawns the zygote from its main thread, the zygote has only one.)
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import resource
import selectors
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from sllmd.core.errors import ProtocolError
from sllmd.engine import worker
from sllmd.engine.builders import EngineKind, import_engine
from sllmd.engine.messages import Exited, Fork, Forked, ForkFailed, Message, ZygoteReady, decode, encode
from sllmd.wire.frames import BlockingChannel, close_descriptors

CONTROL_DESCRIPTOR = 3
"""Where the daemon puts its end of the control socket."""
OOM_SCORE_ADJUST = 500
"""When memory runs out, the kernel shall end a worker, which is replaced, before the daemon."""
_PR_SET_PDEATHSIG = 1


class Zygote:
    """The control loop: fork on request, report exits."""

    def __init__(self, engine: EngineKind, frame_bytes_max: int) -> None:
        self._engine: EngineKind = engine
        self._frame_bytes_max = frame_bytes_max
        self._control = socket.socket(fileno=CONTROL_DESCRIPTOR)
        self._channel = BlockingChannel(self._control, frame_bytes_max=frame_bytes_max)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._control, selectors.EVENT_READ)
        self._worker_by_pidfd: dict[int, tuple[int, int]] = {}
        """pidfd -> worker id, pid."""

    def run(self) -> None:
        """Import, then serve until the daemon hangs up."""
        started_seconds = time.monotonic()
        _import_engine(self._engine)
        try:
            self._send(ZygoteReady(time.monotonic() - started_seconds))
            self._serve()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            os._exit(0)  # the daemon hung up

    def _serve(self) -> NoReturn:
        while True:
            for key, _events in self._selector.select():
                if key.fd == self._control.fileno():
                    self._receive()
                else:
                    self._reap(key.fd)

    def _receive(self) -> None:
        value, descriptors = self._channel.receive()
        message = decode(value)
        if not isinstance(message, Fork) or len(descriptors) != 2:
            raise ProtocolError(f"a zygote cannot serve {type(message).__name__}")
        self._fork(message.worker_id, *descriptors)

    def _fork(self, worker_id: int, connection: int, output: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        parent_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            close_descriptors([connection, output])
            self._send(ForkFailed(worker_id, f"no further process: {error.strerror}"))
            return
        if pid == 0:
            self._become_worker(parent_pid, connection, output)
        close_descriptors([connection, output])
        pidfd = os.pidfd_open(pid)  # in a place that has just become free
        self._worker_by_pidfd[pidfd] = (worker_id, pid)
        self._selector.register(pidfd, selectors.EVENT_READ)
        self._send(Forked(worker_id, pid))

    def _reap(self, pidfd: int) -> None:
        worker_id, pid = self._worker_by_pidfd.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _pid, status = os.waitpid(pid, 0)
        self._send(Exited(worker_id, os.waitstatus_to_exitcode(status)))

    def _become_worker(self, parent_pid: int, connection: int, output: int) -> NoReturn:
        """Keep nothing of the zygote but its modules."""
        try:
            _die_with(parent_pid)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            self._selector.close()
            self._control.close()
            close_descriptors(tuple(self._worker_by_pidfd))
            Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJUST))
            worker.main(socket.socket(fileno=connection), self._engine, self._frame_bytes_max)
        except BaseException:  # noqa: BLE001 - the zygote's frames below this one are not this process's
            traceback.print_exc()
        finally:
            os._exit(1)

    def _send(self, message: Message) -> None:
        self._channel.send(encode(message))


def _import_engine(engine: EngineKind) -> None:
    """Pay for imports and first-use costs once; then keep the collector off what all workers share."""
    import_engine(engine)
    gc.collect()
    gc.freeze()


def _die_with(parent_pid: int) -> None:
    """Have the kernel end this process when its parent ends; exit when it already has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(0)


def _ignore_signals_of_the_group() -> None:
    """Ctrl-C and a service manager's SIGTERM reach the whole group; the daemon decides what ends when."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _keep_no_descriptors() -> None:
    """Whatever the daemon, or who started it, left inheritable is none of ours."""
    os.closerange(CONTROL_DESCRIPTOR + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _allow_many_descriptors() -> None:
    """A large model comes in thousands of slabs, each a descriptor while it is mapped."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """The zygote's entry."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=("transformers", "fake"), required=True)
    parser.add_argument("--frame-bytes-max", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    arguments = parser.parse_args()
    _ignore_signals_of_the_group()
    _die_with(arguments.parent_pid)
    _keep_no_descriptors()
    _allow_many_descriptors()
    os.set_inheritable(CONTROL_DESCRIPTOR, False)
    Zygote(arguments.engine, arguments.frame_bytes_max).run()


if __name__ == "__main__":
    main()

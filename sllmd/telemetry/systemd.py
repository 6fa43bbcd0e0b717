"""What systemd is told about this process: sd_notify(3), without its library.

Outside of systemd there is no socket in the environment and every call does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

import structlog

_log = structlog.get_logger(__name__)

STATUS_INTERVAL_SECONDS = 2.0
"""How often ``systemctl status`` gets a new line, if it changed."""
STOP_MARGIN_SECONDS = 20.0
"""For what comes after the drain: closing connections, reaping workers."""


class ServiceManager:
    """The line to systemd. Call ``alive`` from the event loop only: its silence means that the loop hangs."""

    def __init__(
        self,
        path: str | None,
        *,
        watchdog_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._clock = clock
        self._socket = None if path is None else socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if self._socket is not None:
            self._socket.setblocking(False)
        self._watchdog_interval_seconds = None if watchdog_seconds is None else watchdog_seconds / 2
        self._watchdog_due_seconds = 0.0
        self._status_due_seconds = 0.0
        self._status = ""
        self._stopping = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> ServiceManager:
        """From NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, as systemd sets them."""
        for_us = environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
        microseconds = environ.get("WATCHDOG_USEC", "") if for_us else ""
        watchdog_seconds = int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) else None
        return cls(environ.get("NOTIFY_SOCKET") or None, watchdog_seconds=watchdog_seconds)

    def starting(self, status: str, seconds: float) -> None:
        """The daemon is on its way and may need ``seconds`` more: waiting for others is no failure."""
        self._status = status
        self._send(EXTEND_TIMEOUT_USEC=int(seconds * 1e6), STATUS=status)

    def ready(self, status: str) -> None:
        """The daemon serves."""
        self._status = status
        self._send(READY=1, STATUS=status)

    def stopping(self, drain_seconds: float) -> None:
        """The daemon takes no new work and may need ``drain_seconds`` and a little to end."""
        self._stopping = True
        extend_seconds = min(drain_seconds, 24 * 3600.0) + STOP_MARGIN_SECONDS
        self._send(
            STOPPING=1,
            EXTEND_TIMEOUT_USEC=int(extend_seconds * 1e6),
            STATUS=f"draining, for {drain_seconds:.0f} s at most",
        )

    def alive(self, summary: Callable[[], str]) -> None:
        """Ping the watchdog and refresh the status line when either is due; cheap when neither is."""
        if self._socket is None:
            return
        now_seconds = self._clock()
        if self._watchdog_interval_seconds is not None and now_seconds >= self._watchdog_due_seconds:
            self._watchdog_due_seconds = now_seconds + self._watchdog_interval_seconds
            self._send(WATCHDOG=1)
        if now_seconds >= self._status_due_seconds and not self._stopping:
            self._status_due_seconds = now_seconds + STATUS_INTERVAL_SECONDS
            status = summary()
            if status != self._status:
                self._status = status
                self._send(STATUS=status)

    def close(self) -> None:
        """Give the socket back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, **assignments: str | int) -> None:
        if self._socket is None or self._path is None:
            return
        text = "\n".join(f"{name}={str(value).replace(chr(10), ' ')}" for name, value in assignments.items())
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        try:
            self._socket.sendto(text.encode(), address)
        except OSError as error:
            _log.warning("systemd was not told", message=text, error=str(error))

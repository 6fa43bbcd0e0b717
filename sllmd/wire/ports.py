"""One port for datagrams and streams alike, free on this machine."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sllmd.core.errors import ConfigError

PORTS_TRIED = 64
"""Nodes on one machine that may follow each other from the usual port on."""


@dataclass(frozen=True, slots=True)
class BoundPort:
    """A bound UDP socket and a bound TCP socket that listens, on one port."""

    host: str
    port: int
    datagrams: socket.socket
    streams: socket.socket

    def close(self) -> None:
        """Give both up, if nobody took them over."""
        self.datagrams.close()
        self.streams.close()


def bind_port(host: str, port: int, *, exactly: bool) -> BoundPort:
    """Bind ``port``, or the next one that is free for both; 0 is any free one.

    Raises ConfigError when ``exactly`` this port is in use, when ``PORTS_TRIED`` are, or when the host is
    none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last: OSError | None = None
    for attempt in range(1 if exactly and port else PORTS_TRIED):
        try:
            return _bind_both(family, host, port + attempt if port else 0)
        except OSError as error:
            last = error
        except OverflowError:
            break  # past the last port there is
    hint = "choose another port" if exactly else "choose another port to begin from, or another host"
    raise ConfigError(f"cannot bind port {port} on {host}: {last}", hint=hint)


async def first_free(listen: Callable[[int], Awaitable[int]], port: int, *, exactly: bool) -> int:
    """Have ``listen`` take ``port``, or the first of those that follow which it can have; what it took.

    Raises ConfigError as ``listen`` does.
    """
    last: ConfigError | None = None
    for candidate in range(port, port + (1 if exactly or not port else PORTS_TRIED)):
        try:
            return await listen(candidate)
        except ConfigError as error:
            last = error
    assert last is not None
    raise last


def _bind_both(family: socket.AddressFamily, host: str, port: int) -> BoundPort:
    streams = socket.socket(family, socket.SOCK_STREAM)
    datagrams = socket.socket(family, socket.SOCK_DGRAM)
    try:
        streams.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        streams.bind((host, port))
        streams.listen()  # two sockets with SO_REUSEADDR bind alike; only one of them may listen
        bound = streams.getsockname()[1]
        datagrams.bind((host, bound))
    except OSError:
        streams.close()
        datagrams.close()
        raise
    return BoundPort(host, bound, datagrams, streams)

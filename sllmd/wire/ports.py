"""One port for datagrams and streams alike, free on this machine."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from sllmd.core.errors import ConfigError

PORTS_TRIED = 64
"""Nodes on one machine that may follow each other from the usual port on."""
PORTS_END = 65536
"""The first number that is no port."""


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


def candidates(port: int, *, exactly: bool, last: int = 0, avoid: Collection[int] = ()) -> list[int]:
    """What to try in turn: where one was ``last``, then ``port`` and those that follow, without others'."""
    if exactly or not port:
        return [port]
    following = range(port, min(port + PORTS_TRIED, PORTS_END))
    return [*([last] if last else []), *(one for one in following if one != last and one not in avoid)]


def bind_port(
    host: str, port: int, *, exactly: bool, last: int = 0, avoid: Collection[int] = ()
) -> BoundPort:
    """Bind ``port``, or the next one that is free for both; 0 is any free one. ``last``, ``avoid``: as for
    ``candidates``.

    Raises ConfigError when ``exactly`` this port is in use, when ``PORTS_TRIED`` are, or when the host is
    none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    tried = candidates(port, exactly=exactly, last=last, avoid=avoid) if port else [0] * PORTS_TRIED
    lost: OSError | None = None
    for candidate in tried:
        try:
            return _bind_both(family, host, candidate)
        except OSError as error:
            lost = error
    hint = "choose another port" if exactly else "choose another port to begin from, or another host"
    raise ConfigError(f"cannot bind port {port} on {host}: {lost}", hint=hint)


async def first_free(listen: Callable[[int], Awaitable[int]], ports: Sequence[int]) -> int:
    """Have ``listen`` take the first of ``ports`` which it can have; what it took.

    Raises ConfigError as ``listen`` does.
    """
    last: ConfigError | None = None
    for candidate in ports:
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

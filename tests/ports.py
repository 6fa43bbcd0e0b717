"""Ports for programs that cannot be given one by the kernel, or that come back on the one that they had."""

from __future__ import annotations

import contextlib
import socket
from random import SystemRandom

_LOWEST, _HIGHEST = 12_000, 30_000
"""Below those that the kernel gives to connections: nobody's outgoing connection takes one meanwhile."""
_given: set[int] = set()


def free_ports(count: int = 1) -> int:
    """The first of so many in a row, for TCP and UDP, that nobody has now and this process was not given."""
    for _ in range(1000):
        first = SystemRandom().randrange(_LOWEST, _HIGHEST - count)
        wanted = range(first, first + count)
        if _given.isdisjoint(wanted) and all(map(_is_free, wanted)):
            _given.update(wanted)
            return first
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            stack.enter_context(socket.socket(socket.AF_INET, kind)).bind(("127.0.0.1", port))
        return True
    return False

"""Sealed datagrams over UDP: each is one box (``seal``), and whatever is none is dropped and counted.

Nothing that an outsider sends gets further than the header's check and at most one failed decryption;
nothing is ever answered here, so that it cannot be made to amplify.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, cast

from sllmd.core.errors import ConfigError
from sllmd.wire.addresses import format_address, is_numeric, split_address
from sllmd.wire.seal import Drop, Sealer

RECEIVE_BUFFER_BYTES = 2 * 1024 * 1024
"""Asked of the kernel: what arrives while the process stands still for some seconds is read afterwards."""


class DatagramEndpoint(asyncio.DatagramProtocol):
    """One UDP socket. ``on_contents(address, contents)`` is called on the loop for every box of a member.

    ``dropped`` counts by reason what was not taken; ``taken`` and ``sent`` count the rest.
    """

    def __init__(self, sealer: Sealer, *, bytes_max: int, on_contents: Callable[[str, bytes], None]) -> None:
        self._sealer = sealer
        self._bytes_max = bytes_max
        self._on_contents = on_contents
        self._transport: asyncio.DatagramTransport | None = None
        self.dropped: Counter[Drop] = Counter()
        self.taken = 0
        self.sent = 0

    async def open(self, bound: socket.socket) -> None:
        """Take over a bound socket; ``close`` closes it."""
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=bound)
        self._transport = transport

    def send(self, address: str, contents: bytes) -> None:
        """Send one box; what the system will not take is lost, as on the network.

        So is what is for no numeric address: a name would have to be looked up, and the loop would wait.
        """
        if self._transport is None or self._transport.is_closing():
            return
        target = _target(address)
        if target is None:
            return
        box = self._sealer.seal(contents)
        assert len(box) <= self._bytes_max, f"a datagram of {len(box)} bytes is over {self._bytes_max}"
        with suppress(OSError):
            self._transport.sendto(box, target)
            self.sent += 1

    def close(self) -> None:
        """Close the socket; idempotent."""
        if self._transport is not None:
            self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """Called by the loop."""
        if len(data) > self._bytes_max:
            self.dropped[Drop.OVERSIZED] += 1
            return
        contents = self._sealer.open(data)
        if isinstance(contents, Drop):
            self.dropped[contents] += 1
            return
        self.taken += 1
        self._on_contents(format_address(cast("str", addr[0]), addr[1]), contents)


@lru_cache(maxsize=16_384)
def _target(address: str) -> tuple[str, int] | None:
    """What the system calls an address; None for what is none. Remembered: parsing takes microseconds."""
    try:
        host, port = split_address(address)
    except ConfigError:
        return None
    return (host, port) if is_numeric(host) else None

"""The port that other nodes connect to."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl

import structlog

from sllmd.core.errors import ConfigError, SllmdError
from sllmd.wire.rpc.connection import Connection, Local
from sllmd.wire.tls import explain_tls

_log = structlog.get_logger(__name__)

_BACKLOG = 512
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_EXHAUSTED_PAUSE_SECONDS = 0.1
"""Descriptors come back when connections end; accepting without a pause would keep the loop busy."""


class Listener:
    """Accepts connections, and holds them until it is closed.

    Strangers are bounded in number and time: half a handshake, half a frame or a byte per second costs a
    place among ``strangers_max`` for ``hello_timeout_seconds`` and nothing else.
    """

    def __init__(self, local: Local) -> None:
        self._local = local
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._welcomes: set[asyncio.Task[None]] = set()
        self._connections: set[Connection] = set()

    @property
    def connections(self) -> frozenset[Connection]:
        """Those whose other end is known."""
        return frozenset(self._connections)

    @property
    def strangers(self) -> int:
        """Connections that have not said who they are yet."""
        return len(self._welcomes) - len(self._connections)

    async def start(self, host: str, port: int) -> int:
        """Listen; the real port. Raises ConfigError when the address cannot be had."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, protocol, _name, address = found[0]
            listening = socket.socket(family, kind, protocol)
            try:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.setblocking(False)
                listening.bind(address)
                listening.listen(_BACKLOG)
            except BaseException:
                listening.close()
                raise
        except OSError as error:
            raise ConfigError(
                f"cannot listen for other nodes on {host} port {port}: {error.strerror or error}",
                hint="choose another address or port in [cluster]",
            ) from error
        self._socket = listening
        self._accepting = asyncio.create_task(self._accept(listening))
        return int(listening.getsockname()[1])

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        settings = self._local.settings
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    _log.warning("cannot accept a connection", reason=error.strerror)
                    await asyncio.sleep(_EXHAUSTED_PAUSE_SECONDS)
                continue
            if self.strangers >= settings.strangers_max or len(self._welcomes) >= settings.connections_max:
                accepted.close()
                continue
            welcome = asyncio.create_task(self._welcome(accepted, f"{address[0]}:{address[1]}"))
            self._welcomes.add(welcome)
            welcome.add_done_callback(self._welcomes.discard)

    async def _welcome(self, accepted: socket.socket, address: str) -> None:
        """One connection's life."""
        connection, known = Connection(self._local, address=address), False
        try:
            await self._shake_hands(connection, accepted)
            known = True
        except (OSError, SllmdError, TimeoutError) as error:
            # OSError: TLS errors among them.
            reason = explain_tls(error) if isinstance(error, ssl.SSLError) else str(error) or "too slow"
            log = _log.info if self._local.news(address, reason) else _log.debug
            log("stranger not let in", address=address, reason=reason)
            return
        finally:
            if not known:  # or it was closed in the middle of a handshake
                connection.abort()
                accepted.close()
        self._connections.add(connection)
        try:
            await connection.gone()
        finally:
            self._connections.discard(connection)

    async def _shake_hands(self, connection: Connection, accepted: socket.socket) -> None:
        tls, timeout_seconds = self._local.tls, self._local.settings.hello_timeout_seconds
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.timeout(timeout_seconds):
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=tls.server if tls else None,
                ssl_handshake_timeout=timeout_seconds if tls else None,
            )
            await connection.established()

    async def close(self) -> None:
        """Stop listening and hang up on everybody; returns when all handlers have come to their end."""
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
        if self._socket is not None:
            self._socket.close()
        await asyncio.gather(*(connection.close() for connection in self._connections))
        for welcome in self._welcomes:
            welcome.cancel()
        if self._welcomes:
            await asyncio.wait(self._welcomes)

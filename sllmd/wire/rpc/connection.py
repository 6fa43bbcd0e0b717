"""One connection between two nodes: who is there, is it alive, and which call a frame belongs to.

A ``BufferedProtocol``: the transport reads straight into the inlet's buffer. Both ends are alike; who dialled
matters only to TLS. It ends once, for a reason that every waiter gets.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import structlog

from sllmd.core.errors import PeerRefused, PeerUnreachable, ProtocolError, SllmdError
from sllmd.core.ids import NodeId
from sllmd.wire.codec import unpack_payload
from sllmd.wire.rpc.envelope import Inlet, Kind
from sllmd.wire.rpc.faults import copy_of
from sllmd.wire.rpc.hello import HELLO_BYTES_MAX, Hello, agree, parse_hello
from sllmd.wire.rpc.methods import Caller, Methods
from sllmd.wire.rpc.outgoing import Outgoing, ReplyStream
from sllmd.wire.rpc.outlet import Outlet
from sllmd.wire.rpc.serving import Serving
from sllmd.wire.rpc.settings import RpcSettings
from sllmd.wire.tls import Admission, Peer, Tls, admit_all, check_peer, explain_tls, peer_of

TOLD_MAX = 256
"""Hosts and reasons that are remembered; strangers make them up."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Local:
    """This end of all connections of a node."""

    hello: Callable[[], Hello]
    """What it says of itself, asked for each connection."""
    methods: Methods
    settings: RpcSettings
    tls: Tls | None
    """None: plain TCP, for tests and ``--dev`` on loopback."""
    admission: Admission = field(default=admit_all)
    _told: set[tuple[str, str]] = field(default_factory=set)

    def news(self, address: str, reason: str) -> bool:
        """Whether a refusal has not been told yet of this host: who is refused asks again, for days."""
        refusal = (address.rpartition(":")[0], reason)  # each time from another port
        if refusal in self._told:
            return False
        if len(self._told) >= TOLD_MAX:
            self._told.clear()
        self._told.add(refusal)
        return True


class Connection(asyncio.BufferedProtocol):
    """See the module. Made by ``dial`` and ``Listener``; first wait until ``established``."""

    def __init__(
        self, local: Local, *, address: str, expected: NodeId | None = None, trusting: bool = False
    ) -> None:
        """``trusting``: the other end is believed without a certificate: we only ask it for its CA."""
        self._local = local
        self._settings = local.settings
        self._trusting = trusting
        self._expected = expected
        self._loop = asyncio.get_running_loop()
        self._inlet = Inlet(HELLO_BYTES_MAX)
        self._outlet = Outlet(local.settings, self._break)
        self._outgoing = Outgoing(self._outlet, local.settings)
        self._serving = Serving(local.methods, self._outlet, local.settings)
        self._transport: asyncio.Transport | None = None
        self._tls_peer: Peer | None = None
        self._hello: Hello | None = None
        self._version = 0
        self._caller: Caller | None = None
        self._heard_at = self._loop.time()
        self._tick: asyncio.TimerHandle | None = None
        self._lost: SllmdError | None = None
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._known: asyncio.Future[None] = self._loop.create_future()
        self.address = address

    # --- what its users see ---

    @property
    def peer(self) -> Hello:
        """What the other end said of itself."""
        assert self._hello is not None
        return self._hello

    @property
    def lost(self) -> SllmdError | None:
        """Why nothing can be sent any more; None: it can."""
        return self._lost

    @property
    def calls(self) -> int:
        """Calls under way, both directions."""
        return self._outgoing.count + self._serving.count

    async def call(self, method: str, body: Any = None, *, deadline_seconds: float | None = None) -> Any:
        """The answer. Raises what the handler raised, DeadlineExceeded, PeerUnreachable, or QueueFull.

        Cancelling the caller cancels the handler.
        """
        deadline = self._settings.call_deadline_seconds if deadline_seconds is None else deadline_seconds
        return await self._outgoing.call(method, body, deadline)

    def stream(self, method: str, body: Any = None, *, deadline_seconds: float | None = None) -> ReplyStream:
        """Begin a stream. Raises PeerUnreachable or QueueFull; the source's errors come while iterating."""
        return self._outgoing.stream(method, body, deadline_seconds)

    def note(self, method: str, body: Any) -> bool:
        """Send without an answer; False: dropped, because the peer does not keep up or is gone."""
        if self._lost is not None or self._outlet.full:
            return False
        self._outlet.put(Kind.NOTE, (method, body))
        return True

    async def established(self) -> None:
        """Wait until both ends know each other. Raises PeerRefused, PeerUnreachable, ProtocolError."""
        await asyncio.shield(self._known)

    async def gone(self) -> None:
        """Wait for its end."""
        await asyncio.shield(self._gone)

    async def close(self, reason: str = "it is stopping") -> None:
        """Say goodbye and hang up; returns when every handler has come to its end."""
        self._hang_up(PeerUnreachable(f"the connection to {self._who()} was closed"), reason)
        await self._serving.ended()
        await self.gone()

    # --- what the transport calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP and TLS are through."""
        self._transport = cast("asyncio.Transport", transport)
        if self._lost is not None:  # closed meanwhile
            self._transport.abort()
            return
        self._limit_unacked(self._transport)
        self._outlet.open(self._transport)
        self._heard_at = self._loop.time()
        self._tick = self._loop.call_later(self._settings.hello_timeout_seconds, self._check_hello)
        try:
            self._check_certificate()
        except PeerRefused as error:
            self._refuse(error)
            return
        self._outlet.put(Kind.HELLO, self._local.hello().to_wire())

    def _limit_unacked(self, transport: asyncio.Transport) -> None:
        connection = transport.get_extra_info("socket")
        unacked_ms = int(self._settings.unacked_seconds_max * 1000)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unacked_ms)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Where to read into."""
        return self._inlet.space()

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes arrived."""
        self._heard_at = self._loop.time()
        try:
            for version, kind, payload in self._inlet.frames(nbytes):
                if self._lost is not None:
                    return
                self._take(version, kind, payload)
        except ProtocolError as error:
            self._break(error)

    def eof_received(self) -> bool:
        """The other end hung up."""
        return False

    def pause_writing(self) -> None:
        """The socket is full."""
        self._outlet.pause()

    def resume_writing(self) -> None:
        """It takes more."""
        self._outlet.resume()

    def connection_lost(self, error: Exception | None) -> None:
        """It is over."""
        if isinstance(error, ssl.SSLError):
            self._lose(PeerRefused(f"{self._who()}: {explain_tls(error)}"))
        elif self._caller is None and self._local.tls is not None:
            # The alert that would tell does not reach us: the other end closes before it is read.
            self._lose(
                PeerUnreachable(
                    f"{self._who()} hung up before it said who it is",
                    hint="it may not accept our certificate (expired, or of another cluster): its log tells",
                )
            )
        else:
            reason = str(error) if error else "it hung up"
            self._lose(PeerUnreachable(f"the connection to {self._who()} broke: {reason}", in_doubt=True))
        if not self._gone.done():
            self._gone.set_result(None)

    # --- frames ---

    def _take(self, version: int, kind: int, payload: memoryview) -> None:
        if kind == Kind.GOODBYE:
            self._take_goodbye(unpack_payload(payload))
        elif self._caller is None:
            self._take_hello(kind, payload)
        elif version != self._version:
            raise ProtocolError(f"a frame of version {version} after version {self._version} was agreed")
        else:
            self._dispatch(kind, unpack_payload(payload), self._caller)

    def _dispatch(self, kind: int, message: Any, caller: Caller) -> None:  # noqa: C901  a table of one line each
        match kind:
            case Kind.ITEMS:
                self._outgoing.items(message)
            case Kind.CREDIT:
                self._serving.credit(message)
            case Kind.CALL:
                self._serving.call(message, caller)
            case Kind.RESULT:
                self._outgoing.result(message)
            case Kind.NOTE:
                self._serving.note(message, caller)
            case Kind.END:
                self._outgoing.end(message)
            case Kind.FAULT:
                self._outgoing.fault(message)
            case Kind.CANCEL:
                self._serving.cancel(message)
            case Kind.PING:
                self._outlet.put(Kind.PONG, None)
            case Kind.PONG:
                pass
            case Kind.WELCOME:
                self._welcomed()
            case _:
                raise ProtocolError(f"no frame is of kind {kind}")

    def _take_hello(self, kind: int, payload: memoryview) -> None:
        if kind != Kind.HELLO:
            raise ProtocolError("the other side does not say who it is")
        theirs = parse_hello(unpack_payload(payload))
        try:
            self._version = agree(self._local.hello(), theirs)
            self._check_claim(theirs)
        except PeerRefused as error:
            self._refuse(error)
            return
        self._hello = theirs
        self._outlet.version = self._version
        self._inlet.frame_bytes_max = self._settings.frame_bytes_max
        fingerprint = self._tls_peer.fingerprint if self._tls_peer else ""
        self._caller = Caller(theirs.node, self.address, fingerprint, self)
        if self._tick is not None:
            self._tick.cancel()
        self._tick = self._loop.call_later(
            self._settings.keepalive_seconds, self._check_life, self._loop.time()
        )
        self._outlet.put(Kind.WELCOME, None)

    def _welcomed(self) -> None:
        if not self._known.done():
            self._known.set_result(None)

    def _take_goodbye(self, message: Any) -> None:
        match message:
            case (str(code), str(reason), str() | None as hint):
                pass
            case _:
                raise ProtocolError("a goodbye that cannot be understood")
        if code == PeerRefused.code:
            self._lose(PeerRefused(f"{self._who()} refuses: {reason}", hint=hint))
        else:
            self._lose(PeerUnreachable(f"{self._who()} hung up: {reason}", in_doubt=True, hint=hint))
        if self._transport is not None:
            self._transport.close()

    # --- who is there ---

    def _check_certificate(self) -> None:
        connection = self._transport.get_extra_info("ssl_object") if self._transport else None
        if connection is None:
            return
        self._tls_peer = peer_of(connection)
        if self._tls_peer is not None:
            check_peer(self._tls_peer, self._local.admission, self._expected)

    def _check_claim(self, theirs: Hello) -> None:
        """With TLS a node is what its certificate says, without it what it says. A stranger says nothing."""
        encrypted = self._transport is not None and self._transport.get_extra_info("ssl_object") is not None
        proven = self._tls_peer.node if self._tls_peer else ""
        if encrypted and not self._trusting and theirs.node != proven:
            raise PeerRefused(f"node {theirs.node or '?'} shows the certificate of {proven or 'nobody'}")
        if self._expected is not None and theirs.node != self._expected:
            if theirs.node == self._local.hello().node:
                raise PeerRefused(
                    f"{self.address} is outdated for node {self._expected}: this node itself is there now"
                )
            raise PeerRefused(f"node {theirs.node} answered instead of node {self._expected}")
        if theirs.node and theirs.node == self._local.hello().node:
            raise PeerRefused(
                f"node {theirs.node} is this node itself, or a copy of its data directory",
                hint="never clone a data directory; start the copy with an empty one and --join",
            )

    def _who(self) -> str:
        node = self._hello.node if self._hello else self._tls_peer.node if self._tls_peer else ""
        return f"node {node} at {self.address}" if node else self.address or "the other side"

    # --- its end ---

    def _check_hello(self) -> None:
        waited = self._settings.hello_timeout_seconds
        self._break(ProtocolError(f"it did not say who it is within {waited:g} s"))

    def _check_life(self, asked_at: float) -> None:
        now = self._loop.time()
        if now - asked_at > 2 * self._settings.keepalive_seconds:
            self._heard_at = now  # it was us who slept: what it sent meanwhile is still to be read
        silent = now - self._heard_at
        if silent > self._settings.dead_after_seconds:
            self._lose(PeerUnreachable(f"{self._who()} was silent for {silent:.0f} s", in_doubt=True))
            self.abort()
            return
        if silent >= self._settings.keepalive_seconds / 2:
            self._outlet.put(Kind.PING, None)
        self._tick = self._loop.call_later(self._settings.keepalive_seconds, self._check_life, now)

    def _refuse(self, error: PeerRefused) -> None:
        log = _log.warning if self._local.news(self.address, error.message) else _log.debug
        log("node refused", address=self.address, reason=error.message, hint=error.hint)
        self._hang_up(error, error.message, code=error.code, hint=error.hint)

    def _break(self, error: ProtocolError) -> None:
        """The other end broke the protocol, or does not read."""
        _log.warning("connection dropped", peer=self._who(), reason=error.message)
        self._lose(ProtocolError(f"{self._who()}: {error.message}", hint=error.hint))
        self.abort()

    def _hang_up(
        self, error: SllmdError, reason: str, *, code: str = PeerUnreachable.code, hint: str | None = None
    ) -> None:
        if self._lost is None:
            self._outlet.put(Kind.GOODBYE, (code, reason, hint))
            self._outlet.flush()
            self._lose(error)
        if self._transport is None:
            if not self._gone.done():
                self._gone.set_result(None)
            return
        self._transport.close()
        # A peer that does not read would keep it open for what it has not taken.
        self._loop.call_later(self._settings.hello_timeout_seconds, self.abort)

    def abort(self) -> None:
        """Hang up without a word."""
        if self._transport is not None:
            self._transport.abort()

    def _lose(self, error: SllmdError) -> None:
        """Nothing can be sent any more, because of ``error``; the first reason counts."""
        if self._lost is not None:
            return
        self._lost = error
        if self._tick is not None:
            self._tick.cancel()
        self._outlet.close()
        self._outgoing.close(error)
        self._serving.close()
        if not self._known.done():
            self._known.set_exception(copy_of(error))
            self._known.exception()  # who waits gets it; nobody need

"""The source of chunks: a thread per connection, reading what a ``Provider`` holds."""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import structlog

from sllmd.core.errors import ConfigError, PeerRefused, ProtocolError, SllmdError
from sllmd.core.ids import NodeId
from sllmd.wire.bulk.messages import (
    NONCE_BYTES,
    Kind,
    Read,
    connection_key,
    opening_proof,
    parse_read,
)
from sllmd.wire.bulk.pipe import Piece, Pipe, Tagger, finish
from sllmd.wire.bulk.settings import BulkSettings
from sllmd.wire.codec import pack_payload
from sllmd.wire.rpc.faults import encode_fault
from sllmd.wire.tls import Admission, Peer, Tls, admit_all, check_peer, explain_tls, peer_of

_log = structlog.get_logger(__name__)

_LOOK_AGAIN_SECONDS = 0.05
_CLOSE_SECONDS = 5.0
"""Threads end within milliseconds of their sockets' shutdown, unless a disk holds them."""


class Holding(Protocol):
    """A checkpoint's bytes, kept readable until ``close``."""

    def pieces(self, path: str, offset_bytes: int, size_bytes: int) -> Sequence[Piece]:
        """Where the bytes are, until the next call. Raises SllmdError: no such file, or not so long."""

    def close(self) -> None:
        """They may go."""


Provider = Callable[[str], Holding]
"""Given a checkpoint's digest. Called by threads; raises SllmdError when this node does not hold it."""


@dataclass(frozen=True, slots=True)
class _Granted:
    key: bytes
    peer: Peer
    expires_at: float


class BulkServer:
    """One or two ports: TLS, and the plain one of ``encryption = "off"``.

    Without ``tls`` a plain one alone, which asks for no ticket: for tests, and ``--dev`` on loopback.
    """

    def __init__(
        self, provider: Provider, settings: BulkSettings, tls: Tls | None, admission: Admission = admit_all
    ) -> None:
        self._provider = provider
        self._settings = settings
        self._tls = tls
        self._admission = admission
        self._lock = threading.Lock()
        self._tickets: OrderedDict[str, _Granted] = OrderedDict()
        self._listening: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._pipes: dict[Pipe, NodeId | None] = {}
        """Whose each open connection is; None: nobody's yet, or there is no TLS."""
        self._strangers = 0
        self._plain_port = 0
        self._closing = False

    def start(self, host: str, port: int) -> int:
        """Listen; the port to tell peers. Raises ConfigError when the address cannot be had."""
        if self._tls is None:
            self._plain_port = self._listen(host, port, encrypted=False)
            return self._plain_port
        taken = self._listen(host, port, encrypted=True)
        if self._settings.encryption == "off":
            self._plain_port = self._listen(host, 0, encrypted=False)
        return taken

    def _listen(self, host: str, port: int, *, encrypted: bool) -> int:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listening = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise ConfigError(
                f"cannot listen for chunks on {host} port {port}: {error.strerror or error}",
                hint="choose another address or port in [cluster]",
            ) from error
        self._listening.append(listening)
        self._start_thread(lambda: self._accept(listening, encrypted))
        return int(listening.getsockname()[1])

    def _start_thread(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception:  # noqa: BLE001  a crash of one connection must not be silent, nor end the others
                _log.exception("chunk connection crashed")

        thread = threading.Thread(target=run, name="chunks", daemon=True)
        with self._lock:  # ``close`` joins every thread that it finds there
            thread.start()
            self._threads = [*self._alive(), thread]

    def _alive(self) -> list[threading.Thread]:
        return [thread for thread in self._threads if thread.is_alive()]

    def _accept(self, listening: socket.socket, encrypted: bool) -> None:
        while not self._closing:
            try:
                accepted, address = listening.accept()
            except OSError as error:
                if not self._closing:
                    _log.warning("cannot accept a connection", reason=error.strerror)
                    time.sleep(0.1)
                continue
            with self._lock:
                room = (
                    self._strangers < self._settings.strangers_max
                    and len(self._pipes) < self._settings.connections_max
                )
                self._strangers += room
            if room:
                where = f"{address[0]}:{address[1]}"
                self._start_thread(lambda each=accepted, at=where: self._serve(each, at, encrypted))  # type: ignore[misc]
            else:
                accepted.close()

    # --- one connection, in its thread ---

    def _serve(self, accepted: socket.socket, address: str, encrypted: bool) -> None:
        try:
            pipe = self._shake_hands(accepted, encrypted)
        except (OSError, EOFError) as error:
            with self._lock:
                self._strangers -= 1
            reason = explain_tls(error) if isinstance(error, ssl.SSLError) else str(error)
            _log.info("stranger not let in", address=address, reason=reason)
            return
        try:
            try:
                peer, tagger = self._greet(pipe, encrypted)
            finally:
                with self._lock:
                    self._strangers -= 1
            pipe.limit(self._settings.idle_timeout_seconds)
            _Session(self, pipe, peer, tagger).run()
        except (OSError, EOFError, SllmdError) as error:
            _log.info("chunk connection ended", address=address, reason=str(error))
        finally:
            with self._lock:
                del self._pipes[pipe]
            pipe.close()

    def _shake_hands(self, accepted: socket.socket, encrypted: bool) -> Pipe:
        timeout_seconds = self._settings.handshake_timeout_seconds
        accepted.settimeout(timeout_seconds)
        connection = accepted
        try:
            # A byte now and then would pass every per-byte time-out.
            with _time_limit(accepted, timeout_seconds):
                if encrypted:
                    assert self._tls is not None
                    connection = self._tls.strict_server.wrap_socket(accepted, server_side=True)
            pipe = Pipe(connection, timeout_seconds)
            with self._lock:
                if self._closing:
                    raise EOFError("stopping")
                self._pipes[pipe] = None
        except BaseException:
            connection.close()
            raise
        return pipe

    def _greet(self, pipe: Pipe, encrypted: bool) -> tuple[Peer | None, Tagger | None]:
        if not encrypted:
            with _time_limit(pipe.connection, self._settings.handshake_timeout_seconds):
                return None, self._open_plain(pipe)
        try:
            peer = peer_of(cast("ssl.SSLSocket", pipe.connection))
            if peer is None:
                raise PeerRefused("it showed no certificate")
            self._admit(pipe, peer)
        except PeerRefused as error:
            pipe.send(Kind.FAULT, encode_fault(error))
            raise
        return peer, None

    def _open_plain(self, pipe: Pipe) -> Tagger | None:
        if self._tls is None:
            return None
        nonce = secrets.token_bytes(NONCE_BYTES)
        pipe.send(Kind.CHALLENGE, nonce)
        match pipe.receive():
            case (Kind.OPEN, (str(ticket_id), bytes(theirs), bytes(proof))) if len(theirs) == NONCE_BYTES:
                pass
            case _:
                raise ProtocolError("it does not show a ticket")
        try:
            key = self._check_ticket(pipe, ticket_id, nonce, theirs, proof)
        except PeerRefused as error:
            pipe.send(Kind.FAULT, encode_fault(error))
            raise
        pipe.send(Kind.OPENED, None)
        return Tagger(connection_key(key, nonce, theirs))

    def _admit(self, pipe: Pipe, peer: Peer) -> None:
        """Noted before it is judged, so that ``hang_up`` misses nobody. Raises PeerRefused."""
        with self._lock:
            self._pipes[pipe] = peer.node
        check_peer(peer, self._admission, None)

    def _check_ticket(self, pipe: Pipe, ticket_id: str, nonce: bytes, theirs: bytes, proof: bytes) -> bytes:
        with self._lock:
            granted = self._tickets.get(ticket_id)
        key = granted.key if granted else bytes(32)
        right = hmac.compare_digest(opening_proof(key, nonce, theirs), proof)
        if granted is None or not right or time.monotonic() >= granted.expires_at:
            raise PeerRefused("the ticket for chunks is not known, or has expired")
        self._admit(pipe, granted.peer)
        return granted.key

    def grant(self, peer: Peer | None) -> tuple[str, bytes, int]:
        """A ticket: id, key, plain port. Raises PeerRefused when chunks are encrypted here."""
        if peer is None or not self._plain_port:
            raise PeerRefused('this node sends chunks encrypted: chunk encryption is "on" here')
        ticket_id, key = secrets.token_hex(8), os.urandom(32)
        expires_at = time.monotonic() + self._settings.ticket_lifetime_seconds
        with self._lock:
            self._tickets[ticket_id] = _Granted(key, peer, expires_at)
            while len(self._tickets) > self._settings.tickets_max:
                self._tickets.popitem(last=False)
        return ticket_id, key, self._plain_port

    @property
    def settings(self) -> BulkSettings:
        """As given."""
        return self._settings

    def hold(self, checkpoint: str) -> Holding:
        """What the provider says."""
        return self._provider(checkpoint)

    def hang_up(self, nodes: Collection[NodeId]) -> None:
        """End what these have open, whatever is under way; the admission says no to them by now."""
        with self._lock:
            pipes = [pipe for pipe, node in self._pipes.items() if node in nodes]
        for pipe in pipes:
            pipe.interrupt()

    def close(self) -> None:
        """Hang up on everybody; returns when the threads have ended. Blocks."""
        self._closing = True
        for listening in self._listening:
            _shut(listening)
        deadline = time.monotonic() + _CLOSE_SECONDS
        while time.monotonic() < deadline:  # one that was just being accepted turns up after the first look
            with self._lock:
                pipes, threads = list(self._pipes), self._alive()
            if not threads:
                break
            for pipe in pipes:
                pipe.interrupt()
            threads[0].join(_LOOK_AGAIN_SECONDS)
        for listening in self._listening:
            listening.close()


@contextmanager
def _time_limit(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Hang up when what is within takes longer."""
    descriptor = socket.socket(fileno=os.dup(connection.fileno()))
    guard = threading.Timer(seconds, _shut, (descriptor,))
    guard.daemon = True
    guard.start()
    try:
        yield
    finally:
        guard.cancel()
        descriptor.close()


def _shut(connection: socket.socket) -> None:
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError:
        return  # it is closed already


def _size_bytes(piece: Piece) -> int:
    return len(piece) if isinstance(piece, memoryview) else piece.size_bytes


class _Session:
    """Requests of one connection, one after the other."""

    def __init__(self, server: BulkServer, pipe: Pipe, peer: Peer | None, tagger: Tagger | None) -> None:
        self._server = server
        self._pipe = pipe
        self._peer = peer
        self._tagger = tagger
        self._held: tuple[str, Holding] | None = None

    def run(self) -> None:
        """Answer until the other side leaves."""
        try:
            while True:
                kind, message = self._pipe.receive()
                if kind == Kind.TICKET:
                    self._answer_ticket()
                elif kind == Kind.READ:
                    self._answer_read(parse_read(message, self._server.settings.read_bytes_max))
                else:
                    raise ProtocolError(f"no request is of kind {kind}")
        finally:
            self._let_go()

    def _answer_ticket(self) -> None:
        try:
            ticket = self._server.grant(self._peer)
        except PeerRefused as error:
            self._pipe.send(Kind.FAULT, encode_fault(error))
            return
        self._pipe.send(Kind.TICKETED, ticket)

    def _answer_read(self, read: Read) -> None:
        try:
            if read.tagged and self._tagger is None:
                raise PeerRefused("chunks are tagged on ticketed connections only")
            pieces = self._hold(read.checkpoint).pieces(read.path, read.offset_bytes, read.size_bytes)
        except SllmdError as error:
            self._pipe.send(Kind.FAULT, encode_fault(error))
            return
        # The other side waits for every byte that was announced.
        assert sum(map(_size_bytes, pieces)) == read.size_bytes, "a provider gave other bytes than asked for"
        tag = None
        if read.tagged and self._tagger is not None:
            tag = self._tagger.begin(pack_payload(read.to_wire(), self._server.settings.read_bytes_max))
        settings = self._server.settings
        self._pipe.limit(settings.stall_timeout_seconds)
        self._pipe.send(Kind.DATA, read.size_bytes, more=True)
        self._pipe.send_chunk(pieces, tag)
        if tag is not None:
            self._pipe.send_bytes(finish(tag))
        self._pipe.limit(settings.idle_timeout_seconds)

    def _hold(self, checkpoint: str) -> Holding:
        if self._held is not None and self._held[0] == checkpoint:
            return self._held[1]
        self._let_go()
        holding = self._server.hold(checkpoint)
        self._held = checkpoint, holding
        return holding

    def _let_go(self) -> None:
        if self._held is not None:
            self._held[1].close()
            self._held = None

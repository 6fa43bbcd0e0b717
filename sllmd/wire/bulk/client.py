"""Asking one node for chunks, from several threads at once."""

from __future__ import annotations

import hmac
import os
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from sllmd.core.errors import PeerRefused, PeerUnreachable, ProtocolError
from sllmd.core.ids import NodeId
from sllmd.wire.bulk.messages import (
    MESSAGE_BYTES_MAX,
    NONCE_BYTES,
    TAG_BYTES,
    Kind,
    Read,
    Ticket,
    connection_key,
    opening_proof,
    parse_ticket,
)
from sllmd.wire.bulk.pipe import Pipe, Tagger, finish
from sllmd.wire.bulk.settings import BulkSettings
from sllmd.wire.codec import pack_payload
from sllmd.wire.rpc.faults import decode_fault
from sllmd.wire.tls import Admission, Tls, admit_all, check_peer, explain_tls, peer_of

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BulkAddress:
    """Where a node serves chunks."""

    node: NodeId
    host: str
    port: int


class BulkClient:
    """Connections to one node: as many as threads ask at once, kept between requests.

    ``tls`` None: plain and ticketless, what a server without TLS expects. ``tagged``: on plain connections
    every chunk is checked; without it nothing is, which is for measuring.
    """

    def __init__(
        self,
        address: BulkAddress,
        settings: BulkSettings,
        tls: Tls | None,
        admission: Admission = admit_all,
        *,
        tagged: bool = True,
    ) -> None:
        self._address = address
        self._settings = settings
        self._tls = tls
        self._admission = admission
        self._tagged = tagged
        self._lock = threading.Lock()
        self._idle: list[tuple[Pipe, Tagger | None]] = []
        self._pipes: set[Pipe] = set()
        self._ticket: Ticket | None = None
        self._encrypted = tls is not None and settings.encryption == "on"
        self._given_up = False

    def fetch(
        self,
        checkpoint: str,
        path: str,
        offset_bytes: int,
        views: Sequence[memoryview],
        advance: Callable[[int], None],
    ) -> None:
        """Fill ``views`` with a range of a checkpoint's file; ``advance`` hears of each piece.

        Raises PeerUnreachable (also when it stalls), PeerRefused, ProtocolError (also when the bytes were
        changed on the way), and what the source raises. After an error ``views`` hold anything.
        """
        while not self._fetch(checkpoint, path, offset_bytes, views, advance):
            pass

    def _fetch(
        self,
        checkpoint: str,
        path: str,
        offset_bytes: int,
        views: Sequence[memoryview],
        advance: Callable[[int], None],
    ) -> bool:
        """False: a kept connection had been closed meanwhile, so try the next."""
        began = whole = False

        def count(arrived: int) -> None:
            nonlocal began
            began = True
            advance(arrived)

        with self._lock:
            kept = self._idle.pop() if self._idle else None
        try:
            pipe, tagger = kept or self._connect_as_agreed()
        except (OSError, EOFError) as error:
            raise self._explain(error) from None
        size_bytes = sum(map(len, views))
        read = Read(checkpoint, path, offset_bytes, size_bytes, tagger is not None and self._tagged)
        try:
            whole = self._receive(pipe, tagger, read, views, count)
        except (OSError, EOFError) as error:
            if kept and not began and not isinstance(error, TimeoutError) and not self._given_up:
                return False
            raise self._explain(error) from None
        finally:
            self._give_back(pipe, tagger, whole)
        return True

    def _receive(
        self,
        pipe: Pipe,
        tagger: Tagger | None,
        read: Read,
        views: Sequence[memoryview],
        advance: Callable[[int], None],
    ) -> bool:
        pipe.send(Kind.READ, read.to_wire())
        kind, message = pipe.receive()
        if kind == Kind.FAULT:
            raise decode_fault(message)
        if kind != Kind.DATA or message != read.size_bytes:
            raise ProtocolError(f"node {self._address.node} sends something else than the chunk asked for")
        tag = None
        if read.tagged and tagger is not None:
            tag = tagger.begin(pack_payload(read.to_wire(), MESSAGE_BYTES_MAX))
        pipe.receive_chunk(views, tag, advance)
        if tag is not None:
            theirs = bytearray(TAG_BYTES)
            pipe.receive_into(memoryview(theirs))
            if not hmac.compare_digest(finish(tag), theirs):
                raise ProtocolError(
                    f"a chunk of {read.path} from node {self._address.node} was changed on the way",
                    hint="somebody tampers with the network, or a device on it is broken",
                )
        return True

    # --- connections ---

    def _connect_as_agreed(self) -> tuple[Pipe, Tagger | None]:
        if self._encrypted or self._tls is None:
            pipe = self._connect(self._address.port, self._tls)
            return pipe, None
        return self._connect_with_ticket()

    def _connect_with_ticket(self) -> tuple[Pipe, Tagger | None]:
        with self._lock:
            ticket = self._ticket
        if ticket is None:
            pipe = self._connect(self._address.port, self._tls)
            try:
                ticket = self._ask_for_ticket(pipe)
            except BaseException:
                self._drop(pipe)
                raise
            if ticket is None:
                return pipe, None
            self._drop(pipe)
        pipe = self._connect(ticket.port, None)
        try:
            return pipe, self._open(pipe, ticket)
        except BaseException:
            self._drop(pipe)
            with self._lock:
                self._ticket = None  # it may have expired: the next attempt asks for another
            raise

    def _ask_for_ticket(self, pipe: Pipe) -> Ticket | None:
        """None: that node sends encrypted only; so be it."""
        pipe.send(Kind.TICKET, None)
        kind, message = pipe.receive()
        if kind == Kind.FAULT:
            _log.warning(
                "chunks travel encrypted", node=self._address.node, reason=str(decode_fault(message))
            )
            self._encrypted = True
            return None
        if kind != Kind.TICKETED:
            raise ProtocolError(f"node {self._address.node} answers a wish for a ticket with kind {kind}")
        with self._lock:
            self._ticket = parse_ticket(message)
            return self._ticket

    def _open(self, pipe: Pipe, ticket: Ticket) -> Tagger:
        match pipe.receive():
            case (Kind.CHALLENGE, bytes(nonce)) if len(nonce) == NONCE_BYTES:
                pass
            case _:
                raise ProtocolError(f"node {self._address.node} does not ask for the ticket")
        ours = os.urandom(NONCE_BYTES)
        pipe.send(Kind.OPEN, (ticket.ticket_id, ours, opening_proof(ticket.key, nonce, ours)))
        kind, message = pipe.receive()
        if kind == Kind.FAULT:
            raise decode_fault(message)
        if kind != Kind.OPENED:
            raise ProtocolError(f"node {self._address.node} answers a ticket with kind {kind}")
        pipe.limit(self._settings.stall_timeout_seconds)
        return Tagger(connection_key(ticket.key, nonce, ours))

    def _connect(self, port: int, tls: Tls | None) -> Pipe:
        timeout_seconds = self._settings.handshake_timeout_seconds
        connection = socket.create_connection((self._address.host, port), timeout=timeout_seconds)
        try:
            if tls is not None:
                connection = self._encrypt(connection, tls)
            pipe = Pipe(connection, self._settings.stall_timeout_seconds)
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if not self._given_up:
                self._pipes.add(pipe)
                return pipe
        pipe.close()
        raise EOFError("given up")

    def _encrypt(self, connection: socket.socket, tls: Tls) -> ssl.SSLSocket:
        try:
            encrypted = tls.client.wrap_socket(connection)
        except ssl.SSLError as error:
            raise PeerRefused(f"node {self._address.node}: {explain_tls(error)}") from None
        try:
            peer = peer_of(encrypted)
            if peer is None:
                raise PeerRefused(f"{self._address.host} showed no certificate")
            check_peer(peer, self._admission, self._address.node)
        except PeerRefused:
            encrypted.close()
            raise
        return encrypted

    def _give_back(self, pipe: Pipe, tagger: Tagger | None, whole: bool) -> None:
        with self._lock:
            if whole and not self._given_up:
                self._idle.append((pipe, tagger))
                return
        self._drop(pipe)

    def _drop(self, pipe: Pipe) -> None:
        with self._lock:
            self._pipes.discard(pipe)
        pipe.close()

    def _explain(self, error: OSError | EOFError) -> PeerUnreachable | PeerRefused:
        address = self._address
        if isinstance(error, ssl.SSLError):
            return PeerRefused(f"chunks from node {address.node}: {explain_tls(error)}")
        return PeerUnreachable(f"chunks from node {address.node} at {address.host}:{address.port}: {error}")

    def interrupt(self) -> None:
        """Have fetches in flight return soon; no more are possible."""
        with self._lock:
            self._given_up = True
            pipes = list(self._pipes)
        for pipe in pipes:
            pipe.interrupt()

    def close(self) -> None:
        """Once, when no thread fetches any more."""
        with self._lock:
            pipes, self._pipes, self._idle = self._pipes, set(), []
        for pipe in pipes:
            pipe.close()

"""Chunks from other nodes of the cluster that hold the checkpoint, spread over all of them.

A peer that fails is not asked again by this load: the chunk comes from another, from one that turned up
meanwhile, or from the checkpoint's own server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from sllmd.core.errors import SllmdError, SourceUnavailable
from sllmd.core.ids import Digest
from sllmd.loader.arriving import Fetch, cut
from sllmd.loader.disk import Advance, digest_of
from sllmd.loader.plan import Chunk
from sllmd.store.checkpoint import Checkpoint
from sllmd.wire.bulk.client import BulkAddress, BulkClient

_log = structlog.get_logger(__name__)

PEERS_ONLY_URL = "peers:"
"""``Checkpoint.remote_url`` of one that is nowhere but on other nodes."""


@dataclass(frozen=True, slots=True)
class PeerAccess:
    """What the DRAM tier needs to know of other nodes. Threads call both."""

    holders: Callable[[Digest], Sequence[BulkAddress]]
    """Nodes that have all bytes of a checkpoint, the best first; cheap, from a table."""
    connect: Callable[[BulkAddress], BulkClient]
    """A client for one of them; does not connect yet."""


class PeerFetch:
    """See ``arriving.Fetch``. ``fallback``: where chunks come from when no peer gives them."""

    def __init__(self, checkpoint: Checkpoint, access: PeerAccess, fallback: Fetch | None) -> None:
        self._checkpoint = checkpoint
        self._digest = checkpoint.manifest.digest
        self._access = access
        self._fallback = fallback
        self._lock = threading.Lock()
        self._clients: dict[BulkAddress, BulkClient] = {}
        self._lost: set[BulkAddress] = set()
        self._given_up = False

    def fetch(self, chunk: Chunk, views: Sequence[memoryview], advance: Advance) -> str:
        """As in ``arriving.Fetch``."""
        reason = "no node holds it"
        while (address := self._choose(chunk)) is not None:
            try:
                return self._fetch_from(address, chunk, views, advance)
            except SllmdError as error:
                reason = str(error)
                self._lose(address, chunk, reason)
        if self._fallback is not None and not self._given_up:
            return self._fallback.fetch(chunk, views, advance)
        raise SourceUnavailable(
            f"{chunk.file.path} of {self._checkpoint.name} could not be had from other nodes: {reason}",
            hint="what has arrived is kept for the next load; look at the nodes that hold the model",
        )

    def _fetch_from(
        self, address: BulkAddress, chunk: Chunk, views: Sequence[memoryview], advance: Advance
    ) -> str:
        arrived = 0

        def count(size_bytes: int) -> None:
            nonlocal arrived
            arrived += size_bytes
            advance(size_bytes)

        try:
            exact = cut(views, chunk.size_bytes)
            self._client(address).fetch(self._digest, chunk.file.path, chunk.offset_bytes, exact, count)
            digest = digest_of(views, chunk.size_bytes)
            if chunk.digest not in (None, digest):
                raise SourceUnavailable(f"chunk {chunk.index} of node {address.node} has another checksum")
        except SllmdError:
            advance(-arrived)
            raise
        return digest

    def _choose(self, chunk: Chunk) -> BulkAddress | None:
        """A peer for this chunk; None: there is none left, or the load was given up."""
        if self._given_up:
            return None
        left = [each for each in self._access.holders(self._digest) if each not in self._lost]
        return left[chunk.index % len(left)] if left else None

    def _client(self, address: BulkAddress) -> BulkClient:
        with self._lock:
            if self._given_up:
                raise SourceUnavailable("the load was given up")
            if address not in self._clients:
                self._clients[address] = self._access.connect(address)
            return self._clients[address]

    def _lose(self, address: BulkAddress, chunk: Chunk, reason: str) -> None:
        with self._lock:
            known = address in self._lost or self._given_up
            self._lost.add(address)
        if not known:
            _log.warning(
                "peer gives no chunks",
                model=self._checkpoint.name,
                node=address.node,
                chunk=chunk.index,
                reason=reason,
            )

    def interrupt(self) -> None:
        """As in ``arriving.Fetch``."""
        with self._lock:
            self._given_up = True
            clients = list(self._clients.values())
        for client in clients:
            client.interrupt()
        if self._fallback is not None:
            self._fallback.interrupt()

    def close(self) -> None:
        """As in ``arriving.Fetch``."""
        for client in self._clients.values():
            client.close()
        if self._fallback is not None:
            self._fallback.close()

"""Connections to other nodes, one each, made when somebody needs them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sllmd.core.errors import PeerRefused, PeerUnreachable, SllmdError
from sllmd.core.ids import NodeId
from sllmd.wire.rpc.connection import Connection, Local
from sllmd.wire.rpc.dialing import dial
from sllmd.wire.rpc.faults import copy_of


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node listens."""

    host: str
    port: int


class _Peer:
    """What is known of the way to one node."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.dialling: asyncio.Task[Connection] | None = None
        self.failure: SllmdError | None = None
        self.redial_at = 0.0
        self.pause_seconds = 0.0


class Peers:
    """The pool. A node that cannot be reached is dialled again after a growing pause; in between, asking for
    it fails at once with the last reason."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._peers: dict[tuple[NodeId, Address], _Peer] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def connected(self, node: NodeId, address: Address) -> Connection | None:
        """The connection that is there, without waiting."""
        peer = self._peers.get((node, address))
        connection = peer.connection if peer else None
        return connection if connection is not None and connection.lost is None else None

    async def connection(self, node: NodeId, address: Address) -> Connection:
        """The connection to a node, dialled if need be: once, however many ask.

        Raises PeerUnreachable, PeerRefused, ProtocolError, DeadlineExceeded.
        """
        found = self.connected(node, address)
        if found is not None:
            return found
        peer = self._peers.get((node, address)) or self._begin(node, address)
        if peer.dialling is None:
            if asyncio.get_running_loop().time() < peer.redial_at and peer.failure is not None:
                raise copy_of(peer.failure)
            peer.dialling = asyncio.create_task(self._dial(peer, node, address))
            peer.dialling.add_done_callback(_take_note)
        dialling = peer.dialling
        await asyncio.wait([dialling])
        if dialling.cancelled():  # by ``forget`` or ``close``: nobody has cancelled who asks
            raise PeerUnreachable(f"the way to node {node} was given up while it was dialled")
        return dialling.result()

    def _begin(self, node: NodeId, address: Address) -> _Peer:
        """A way to a node. What led to where it was before is forgotten once nobody uses it."""
        for key in [key for key in self._peers if key[0] == node and self.connected(*key) is None]:
            if self._peers[key].dialling is None:
                del self._peers[key]
        peer = self._peers[node, address] = _Peer()
        return peer

    async def _dial(self, peer: _Peer, node: NodeId, address: Address) -> Connection:
        settings = self._local.settings
        try:
            peer.connection = await dial(self._local, address.host, address.port, expected=node)
        except SllmdError as error:
            peer.failure = copy_of(error)
            refused = isinstance(error, PeerRefused)
            longest_seconds = settings.redial_refused_max_seconds if refused else settings.redial_max_seconds
            peer.pause_seconds = min(max(settings.redial_seconds, 2 * peer.pause_seconds), longest_seconds)
            peer.redial_at = asyncio.get_running_loop().time() + peer.pause_seconds
            raise
        finally:
            peer.dialling = None
        peer.failure, peer.pause_seconds = None, 0.0
        return peer.connection

    def forget(self, node: NodeId) -> None:
        """It left the cluster: hang up."""
        for key in [key for key in self._peers if key[0] == node]:
            self._hang_up(self._peers.pop(key))

    def _hang_up(self, peer: _Peer) -> None:
        if peer.dialling is not None:
            peer.dialling.cancel()
        if peer.connection is not None:
            closing = asyncio.create_task(peer.connection.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Hang up on all; returns when handlers that answered them have come to their end."""
        peers, self._peers = list(self._peers.values()), {}
        for peer in peers:
            self._hang_up(peer)
        dialling = [peer.dialling for peer in peers if peer.dialling is not None]
        if dialling or self._closing:
            await asyncio.wait([*dialling, *self._closing])
        for task in dialling:
            if not task.cancelled() and task.exception() is None:
                task.result().abort()


def _take_note(dialled: asyncio.Task[Connection]) -> None:
    """Everybody who waited may have left by now; its failure is kept for the next who asks."""
    if not dialled.cancelled():
        dialled.exception()

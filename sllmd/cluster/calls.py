"""What a node and others ask of each other, and the chunks that others take: all of its connections.

``listen`` opens the ports; connections that this node makes work before, because agreement starts first.
"""

from __future__ import annotations

import asyncio
import functools

import structlog

from sllmd.cluster.listening import Listening
from sllmd.cluster.settings import RPC_PORT
from sllmd.cluster.whereabouts import Whereabouts
from sllmd.core.errors import PeerRefused, SllmdError
from sllmd.core.ids import NodeId
from sllmd.wire.addresses import format_address, split_address
from sllmd.wire.bulk.server import BulkServer
from sllmd.wire.ports import first_free
from sllmd.wire.rpc.connection import Connection, Local
from sllmd.wire.rpc.dialing import dial
from sllmd.wire.rpc.listener import Listener
from sllmd.wire.rpc.peers import Peers

GOSSIP_ADDRESS = "gossip_address"
"""In the facts of a node's hello: where it gossips, for members that lost sight of it."""
HANG_UP_SECONDS = 1.0
"""From a node's removal to the end of its connections; new ones are refused at once."""

_log = structlog.get_logger(__name__)


class Calls:
    """``chunks``: None where this node serves none."""

    def __init__(self, local: Local, whereabouts: Whereabouts, chunks: BulkServer | None) -> None:
        self._local = local
        self._whereabouts = whereabouts
        self._chunks = chunks
        self._peers = Peers(local)
        self._listener = Listener(local)
        self._told: set[str] = set()
        """Addresses at which this node is no member, as the log has it."""

    async def serve_chunks(self, listening: Listening) -> int:
        """From now on, if this node does; the port, or 0. Raises ConfigError."""
        chunks = self._chunks
        if chunks is None:
            return 0

        async def listen(port: int) -> int:
            return chunks.start(listening.host, port)

        return await first_free(listen, listening.chunks)

    async def listen(self, listening: Listening) -> int:
        """Take calls from now on; the port. Raises ConfigError."""
        return await first_free(functools.partial(self._listener.start, listening.host), listening.calls)

    async def connection(self, node: NodeId) -> Connection:
        """To another node, where it was last seen.

        Raises PeerUnreachable, PeerRefused, ProtocolError, DeadlineExceeded.
        """
        return await self._peers.connection(node, self._whereabouts.of(node))

    async def gossip_address(self, address: str) -> str | None:
        """Where the member that takes calls at ``address`` gossips; None: no other of this cluster does."""
        host, port = split_address(address, default_port=RPC_PORT)
        if format_address(host, port) == self._whereabouts.address:
            return None
        try:
            connection = await dial(self._local, host, port)
        except SllmdError as error:
            self._tell_of_join(address, error)
            return None
        found = connection.peer.facts.get(GOSSIP_ADDRESS)
        await connection.close()
        return found if isinstance(found, str) else None

    def _tell_of_join(self, address: str, error: SllmdError) -> None:
        """Nobody of this cluster takes calls there: once for each address, and loudly where somebody
        does who is of another one, too old, or takes this node for none of its own."""
        if address in self._told:
            return
        if not isinstance(error, PeerRefused):
            _log.debug("nobody of this cluster found there", address=address, reason=error.message)
            return
        self._told.add(address)
        _log.error(
            "not joined: whoever answers there and this node will not talk; it serves on in its own cluster",
            address=address,
            cluster=self._local.hello().cluster,
            reason=error.message,
            hint="if another cluster is there: to join it, start with another --data-dir; to stay, leave out "
            "--join",
        )

    def hang_up(self, nodes: frozenset[NodeId]) -> None:
        """These are members no more: end what was begun with them, in a moment, so that a node that asked for
        it hears so."""
        asyncio.get_running_loop().call_later(HANG_UP_SECONDS, self._hang_up, nodes)

    def _hang_up(self, nodes: frozenset[NodeId]) -> None:
        for node in nodes:
            self._peers.forget(node)
        for connection in self._listener.connections:
            if connection.peer.node in nodes:
                connection.abort()
        if self._chunks is not None:
            self._chunks.hang_up(nodes)

    async def shut(self) -> None:
        """Take calls and serve chunks no more."""
        await self._listener.close()
        if self._chunks is not None:
            await asyncio.to_thread(self._chunks.close)

    async def close(self) -> None:
        """Call nobody any more."""
        await self._peers.close()

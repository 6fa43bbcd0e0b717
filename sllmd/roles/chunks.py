"""Weights from other nodes: which of them have a checkpoint, and how to ask them for its chunks.

Owns: what the DRAM tier needs of the cluster (``loader.peer.PeerAccess``). Threads call it, so it reads only
snapshots that the event loop replaces whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sllmd.cluster.node import ClusterNode
from sllmd.core.ids import Digest, NodeId
from sllmd.loader.peer import PeerAccess
from sllmd.roles.table import Table
from sllmd.wire.bulk.client import BulkAddress, BulkClient


class Chunks:
    """See the module. Knows nobody until ``hosts`` and ``table`` are set."""

    def __init__(self, node: ClusterNode) -> None:
        self.access = PeerAccess(holders=self.holders, connect=self._connect)
        self.hosts: Mapping[NodeId, str] = {}
        """Where other nodes that are well are."""
        self.table: Callable[[], Table] = Table
        self._node = node

    def holders(self, digest: Digest) -> Sequence[BulkAddress]:
        """Nodes that have all bytes of a checkpoint, those in memory first."""
        table, hosts = self.table(), self.hosts
        ports = {node: table.inventories[node].chunk_port for node in table.holders(digest)}
        return [
            BulkAddress(node, hosts[node], port) for node, port in ports.items() if port and node in hosts
        ]

    def _connect(self, address: BulkAddress) -> BulkClient:
        return BulkClient(address, self._node.settings.bulk, self._node.tls, self._node.doorkeeper)

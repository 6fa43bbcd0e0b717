"""Who else is in the cluster, and where: by gossip, as agreed, and as remembered from last time.

Gossip and agreement ask it while they start, so each is missing until it is there.
"""

from __future__ import annotations

from collections.abc import Sequence

from sllmd.cluster.control import ControlStore
from sllmd.cluster.gossip.messages import Status
from sllmd.cluster.membership import Membership
from sllmd.cluster.passport import KnownPeer
from sllmd.cluster.roster import MemberView
from sllmd.core.errors import PeerUnreachable
from sllmd.core.ids import NodeId
from sllmd.wire.addresses import split_address
from sllmd.wire.rpc.peers import Address

AUTHORITY_ROLE = "authority"
"""Told in gossip by nodes that keep the CA."""


class Whereabouts:
    """As this node knows them."""

    def __init__(self, me: NodeId, remembered: Sequence[KnownPeer]) -> None:
        self.remembered = remembered
        """Where other members were when this node last ran."""
        self.address = ""
        """Where other nodes call this one."""
        self.membership: Membership | None = None
        self.control: ControlStore | None = None
        self._me = me

    def members_here(self) -> list[MemberView]:
        """Other members that are not known to be dead or gone."""
        return [view for view in self._others() if view.status <= Status.SUSPECT]

    def nodes_here(self) -> list[NodeId]:
        """Whom agreement may count on: these; those who were there last time until gossip knows somebody."""
        if not self._others():
            return [peer.node for peer in self.remembered]
        return [view.node for view in self.members_here()]

    def keepers(self) -> list[NodeId]:
        """Other living nodes that keep the CA."""
        members = self.members_here()
        return [view.node for view in members if view.meta is not None and AUTHORITY_ROLE in view.meta.roles]

    def known_peers(self) -> list[KnownPeer]:
        """Where members are, this one among them."""
        members = self.membership.members() if self.membership is not None else []
        return [
            KnownPeer(view.node, view.meta.address, view.address)
            for view in members
            if view.status <= Status.SUSPECT and view.meta is not None
        ]

    def of(self, node: NodeId) -> Address:
        """Where it takes calls: by gossip; else as agreed; else where it was when this node last ran.

        Raises PeerUnreachable.
        """
        found = self._by_gossip(node) or self._as_agreed(node) or self._as_remembered(node)
        if not found:
            raise PeerUnreachable(f"nobody knows where node {node} is")
        if found == self.address and node != self._me:
            raise PeerUnreachable(
                f"the known address {found} of node {node} is outdated: it is this node's now"
            )
        return Address(*split_address(found))

    def _others(self) -> list[MemberView]:
        """Members besides this one, dead ones too."""
        members = self.membership.members() if self.membership is not None else []
        return [view for view in members if not view.is_me]

    def _by_gossip(self, node: NodeId) -> str:
        view = self.membership.member(node) if self.membership is not None else None
        return view.meta.address if view is not None and view.meta is not None else ""

    def _as_agreed(self, node: NodeId) -> str:
        known = self.control.view().catalogue.nodes.get(node) if self.control is not None else None
        return known.address if known is not None else ""

    def _as_remembered(self, node: NodeId) -> str:
        return next((peer.rpc for peer in self.remembered if peer.node == node), "")

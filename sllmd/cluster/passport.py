"""What a node is given when it is let in, on the wire and as a value. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sllmd.core.errors import ProtocolError
from sllmd.core.ids import NodeId


@dataclass(frozen=True, slots=True)
class KnownPeer:
    """Where a member was last seen: addresses for calls and for gossip."""

    node: NodeId
    rpc: str
    gossip: str


@dataclass(frozen=True, slots=True)
class Passport:
    """All that a new member needs. Holds secrets: it travels over TLS, or between nodes on loopback."""

    cluster_id: str
    certificate_pem: str
    """Empty in a cluster without TLS, as is ``ca_pem``."""
    ca_pem: str
    keys: tuple[bytes, ...] = field(repr=False)
    """Of gossip, the one that seals first."""
    peers: tuple[KnownPeer, ...]

    def to_wire(self) -> dict[str, Any]:
        """As a msgpack value."""
        return {
            "cluster": self.cluster_id,
            "certificate": self.certificate_pem,
            "ca": self.ca_pem,
            "keys": self.keys,
            "peers": [(peer.node, peer.rpc, peer.gossip) for peer in self.peers],
        }


def parse_passport(value: Any) -> Passport:
    """The inverse of ``Passport.to_wire``; raises ProtocolError. Never says what was in it."""
    match value:
        case {
            "cluster": str(cluster),
            "certificate": str(certificate),
            "ca": str(ca),
            "keys": tuple(keys),
            "peers": tuple(peers),
        } if cluster and keys and all(isinstance(key, bytes) for key in keys):
            return Passport(cluster, certificate, ca, keys, tuple(map(_parse_peer, peers)))
    raise ProtocolError("the answer to a join cannot be understood")


def _parse_peer(value: Any) -> KnownPeer:
    match value:
        case (str(node), str(rpc), str(gossip)):
            return KnownPeer(NodeId(node), rpc, gossip)
    raise ProtocolError("a peer's address cannot be understood")


@dataclass(frozen=True, slots=True)
class Application:
    """What a node says that wants to be let in."""

    node: NodeId
    name: str
    request_pem: str
    """For a certificate; empty without TLS."""
    address: str
    """Where it will be called; known only once it listens, so it may be empty."""
    devices: dict[str, int]
    labels: dict[str, str]
    store: str
    """Who it thinks keeps the agreement: a node that asks somebody else would agree with nobody."""
    token_id: str = ""
    secret: str = field(default="", repr=False)

    def to_wire(self) -> dict[str, Any]:
        """As a msgpack value; the secret goes in beside it once the other side is known."""
        return {
            "node": self.node,
            "name": self.name,
            "request": self.request_pem,
            "address": self.address,
            "devices": self.devices,
            "labels": self.labels,
            "store": self.store,
        }


def parse_application(value: Any) -> Application:
    """What came in; raises ProtocolError."""
    match value:
        case {
            "node": str(node),
            "name": str(name),
            "request": str(request),
            "address": str(address),
            "devices": dict(devices),
            "labels": dict(labels),
            "store": str(store),
            **rest,
        } if 0 < len(node) <= 64 and 0 < len(name) <= 253:
            token_id, secret = rest.get("token_id", ""), rest.get("secret", "")
            if (
                isinstance(token_id, str)
                and isinstance(secret, str)
                and all(isinstance(size, int) for size in devices.values())
                and all(isinstance(label, str) for label in (*devices, *labels, *labels.values()))
            ):
                return Application(
                    NodeId(node), name, request, address, devices, labels, store, token_id, secret
                )
    raise ProtocolError("a request to join cannot be understood")

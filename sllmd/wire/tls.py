"""Mutual TLS between nodes: contexts made from an identity, and who is at the other end.

TLS 1.3 only. ``ssl`` checks the chain and the dates; ``peer_of`` reads the node's id off the certificate, and
an ``Admission`` says whether that node is (still) a member.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from sllmd.core.errors import PeerRefused
from sllmd.core.ids import NodeId
from sllmd.wire.identity import fingerprint_of

Admission = Callable[[NodeId, str], str | None]
"""Given a node's id and its certificate's fingerprint: why it is not let in; None: it is. Threads call it."""


def admit_all(_node: NodeId, _fingerprint: str) -> str | None:
    """Whoever the CA signed for is let in."""
    return None


@dataclass(frozen=True, slots=True)
class Peer:
    """Who a certificate says is at the other end."""

    node: NodeId
    fingerprint: str


class Tls:
    """The contexts of one node. ``reload`` after renewal: connections made later use the new certificate."""

    def __init__(self, identity_file: Path) -> None:
        self._identity_file = identity_file
        self.server = _context(ssl.PROTOCOL_TLS_SERVER)
        self.server.verify_mode = ssl.CERT_OPTIONAL
        """A node that wants to join has no certificate yet; what it may call is decided above TLS."""
        self.server.num_tickets = 0
        self.strict_server = _context(ssl.PROTOCOL_TLS_SERVER)
        self.strict_server.num_tickets = 0
        self.client = _context(ssl.PROTOCOL_TLS_CLIENT)
        self.reload()

    def reload(self) -> None:
        """Read the identity file again. Raises OSError, ssl.SSLError."""
        for context in (self.server, self.strict_server, self.client):
            context.load_cert_chain(self._identity_file)
            context.load_verify_locations(self._identity_file)
        own = x509.load_pem_x509_certificate(self._identity_file.read_bytes())
        self._expires_at_seconds = own.not_valid_after_utc.timestamp()

    def check_own(self, now_seconds: float) -> None:
        """Raises PeerRefused when our own certificate has expired: peers would hang up without a word."""
        if now_seconds >= self._expires_at_seconds:
            raise PeerRefused(
                "this node's certificate has expired",
                hint="check this machine's clock; else move its cluster directory away and join anew",
            )


def anonymous_client(ca_pem: str | None) -> ssl.SSLContext:
    """For a node that has no certificate yet. Without ``ca_pem`` any server will do: to ask for its CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    if ca_pem is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=ca_pem)
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names are node ids: see peer_of
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def peer_of(connection: ssl.SSLObject | ssl.SSLSocket) -> Peer | None:
    """Who the other end's verified certificate names; None: it showed none. Raises PeerRefused."""
    certificate = connection.getpeercert()
    if not certificate:
        return None
    names = [entry[1] for entry in certificate.get("subjectAltName", ()) if entry[0] == "DNS"]
    der = connection.getpeercert(binary_form=True)
    if len(names) != 1 or der is None:
        raise PeerRefused("the other side's certificate does not name exactly one node")
    return Peer(NodeId(str(names[0])), fingerprint_of(der))


def check_peer(peer: Peer, admission: Admission, expected: NodeId | None) -> None:
    """Raises PeerRefused unless ``peer`` is a member and, where we know whom we wanted, is that one."""
    if expected is not None and peer.node != expected:
        raise PeerRefused(
            f"node {peer.node} answered instead of node {expected}",
            hint="its address may have passed to another node; wait for the members to be known",
        )
    reason = admission(peer.node, peer.fingerprint)
    if reason is not None:
        raise PeerRefused(f"node {peer.node} is not let in: {reason}")


def explain_tls(error: ssl.SSLError) -> str:
    """Why a handshake failed, for a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        clocks = "; compare both machines' clocks" if error.verify_code in _ABOUT_TIME else ""
        return f"its certificate is not accepted: {error.verify_message}{clocks}"
    reason = (error.reason or "").replace("_", " ").lower()
    for alert, words in _ALERTS.items():
        if alert in reason:
            return words
    return f"TLS failed: {reason or error}"


_ABOUT_TIME = (9, 10)
"""X509_V_ERR_CERT_NOT_YET_VALID and _HAS_EXPIRED."""
_ALERTS = {
    "certificate expired": "it says that our certificate has expired",
    "certificate revoked": "it says that our certificate was revoked",
    "unknown ca": "it says that our certificate is of another cluster",
    "certificate required": "it wants a certificate, and we showed none",
    "bad certificate": "it does not accept our certificate",
    "wrong version number": "it does not speak TLS",
    "record layer failure": "it does not speak TLS",
}

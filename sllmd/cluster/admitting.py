"""Letting nodes in: tokens are consumed, certificates signed, the catalogue told, a passport handed over.

=====================  ==========  =====================================================================
method                 from        does
=====================  ==========  =====================================================================
``join``               strangers   lets in, or passes on to a node that keeps the CA
``cluster.join``       members     lets in on behalf of the member that was asked; only where the CA is
``cluster.renew``      members     signs a new certificate for the caller
``cluster.authority``  members     tells the CA's key to a node that shall keep it, and to no other
``cluster.keeping``    members     whether this node has the CA's key, and is to keep it
=====================  ==========  =====================================================================

Order: the token is consumed first, in the name of the key and the id that ask, so that the same node may ask
again when the answer was lost; then the certificate is signed; then the node is admitted; then it is told.
Whoever asks for the first time must be new: a token buys a new id, never that of a member.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from sllmd.cluster.catalogue.commands import NodeAdmit, TokenConsume
from sllmd.cluster.catalogue.results import Denied, Reason
from sllmd.cluster.control import ControlStore
from sllmd.cluster.passport import Application, KnownPeer, Passport, parse_application
from sllmd.core.errors import ControlUnavailable, PeerError, PeerRefused, ProtocolError
from sllmd.core.ids import NodeId
from sllmd.wire.identity import Authority, fingerprint_of
from sllmd.wire.rpc.methods import Caller, Methods
from sllmd.wire.token import REMEDY, TokenRecord, check_token, hash_secret

ADMIT_METHOD = "cluster.join"
RENEW_METHOD = "cluster.renew"
AUTHORITY_METHOD = "cluster.authority"
KEEPING_METHOD = "cluster.keeping"
NOBODY_YET = 0
"""The revision that a record has which is not there."""
RETRY_SECONDS = 1.0
"""Told to a node that may ask again."""

_log = structlog.get_logger(__name__)

Call = Callable[[NodeId, str, Any], Any]
Refused = Callable[[str, str, str], None]
"""Told of a node that was not let in: the name it gave, where it is, and why."""


class Admitting:
    """Answers those who want in. Belongs to the event loop of ``control``."""

    def __init__(
        self,
        *,
        cluster_id: str,
        me: NodeId,
        plain: bool,
        store: str,
        control: ControlStore,
        authority: Callable[[], Authority | None],
        keys: Callable[[], list[bytes]],
        peers: Callable[[], Sequence[KnownPeer]],
        keepers: Callable[[], Sequence[NodeId]],
        may_keep: Callable[[NodeId], bool],
        call: Call,
        refused: Refused,
    ) -> None:
        """``keepers``: other living nodes that have the CA; ``may_keep``: whether a node shall have it."""
        self._cluster_id = cluster_id
        self._me = me
        self._plain = plain
        self._store = store
        self._control = control
        self._authority = authority
        self._keys = keys
        self._peers = peers
        self._keepers = keepers
        self._may_keep = may_keep
        self._call = call
        self._refused = refused

    def register(self, methods: Methods) -> None:
        """Answer from now on."""
        methods.unary("join", self._join, strangers=True)
        methods.unary(ADMIT_METHOD, self._admit_for)
        methods.unary(RENEW_METHOD, self._renew)
        methods.unary(AUTHORITY_METHOD, self._tell_authority)
        methods.unary(KEEPING_METHOD, self._tell_keeping)

    async def _join(self, body: Any, caller: Caller) -> dict[str, Any]:
        application = parse_application(body)
        _log.info("node asks to join", name=application.name, node=application.node, address=caller.address)
        try:
            if self._plain or self._authority() is not None:
                return (await self._admit(application)).to_wire()
            return await self._pass_on(body)
        except PeerRefused as error:
            _log.warning("node not let in", name=application.name, address=caller.address, reason=str(error))
            self._refused(application.name, caller.address, error.message)
            raise

    async def _admit_for(self, body: Any, caller: Caller) -> dict[str, Any]:
        """Asked by a member, for a node that asked it."""
        if not caller.node or self._authority() is None:
            raise PeerRefused("this node does not keep the cluster's CA")
        return (await self._admit(parse_application(body))).to_wire()

    async def _pass_on(self, body: Any) -> dict[str, Any]:
        """To the first node with the CA that answers."""
        lost: PeerError | None = None
        for node in self._keepers():
            try:
                answer = await self._call(node, ADMIT_METHOD, body)
            except PeerRefused:
                raise
            except PeerError as error:
                lost = error
                continue
            if isinstance(answer, dict):
                return answer
            raise ProtocolError("the answer to a join cannot be understood")
        raise ControlUnavailable(
            f"no node with the cluster's CA can be reached{f': {lost.message}' if lost else ''}",
            retry_after_seconds=RETRY_SECONDS,
        )

    async def _admit(self, application: Application) -> Passport:
        if application.store != self._store:
            raise PeerRefused(
                f"this cluster's agreement is kept by {self._store}, not by {application.store}",
                hint=f'set store = "{self._store}" in [cluster], as on the other nodes',
            )
        certificate_pem, ca_pem, fingerprint, expected = "", "", "", None
        if not self._plain:
            asked_before = await self._consume_token(application)
            expected = None if asked_before else NOBODY_YET
            authority = self._authority()
            assert authority is not None
            certificate_pem, fingerprint = sign(authority, application.request_pem, application.node)
            ca_pem = authority.certificate_pem
        result = await self._control.propose(
            NodeAdmit(
                application.node,
                application.name,
                application.address,
                fingerprint,
                application.devices,
                application.labels,
                expected,
            )
        )
        if isinstance(result, Denied):
            raise _denied(result, application)
        _log.info("node admitted", name=application.name, node=application.node)
        peers = tuple(peer for peer in self._peers() if peer.node != application.node)
        return Passport(self._cluster_id, certificate_pem, ca_pem, tuple(self._keys()), peers)

    async def _consume_token(self, application: Application) -> bool:
        """Whether this node asked with it before. Raises PeerRefused; what is plainly wrong is refused before
        anything is agreed on about it."""
        if not application.token_id:
            raise PeerRefused(
                "a join token is needed",
                hint="`sllmd token create` on a member makes one; give it with --token",
            )
        now_seconds = time.time()
        catalogue = self._control.view().catalogue
        if application.token_id not in catalogue.tokens:  # perhaps it was made a moment ago
            catalogue = await self._control.read()
        found = catalogue.tokens.get(application.token_id)
        if found is not None and found.is_revoked:
            found = None
        record = None
        if found is not None:  # how often it may still be used is for the command to say
            record = TokenRecord(found.token_id, found.sha256, found.expires_at_seconds, uses_left=1)
        check_token(record, application.secret, now_seconds)
        claim = claim_of(application.request_pem, application.node)
        asked_before = found is not None and claim in found.claims
        if not asked_before and self._is_member(application.node):
            raise _member_already(application.node)
        result = await self._control.propose(
            TokenConsume(application.token_id, hash_secret(application.secret), now_seconds, claim)
        )
        if isinstance(result, Denied):
            how = "has expired" if result.reason is Reason.EXPIRED else "was used up"
            raise PeerRefused(f"the join token {how}", hint=REMEDY)
        return asked_before

    def _is_member(self, node: NodeId) -> bool:
        """As agreed; or as gossip tells, which knows a founder before the catalogue does."""
        known = self._control.view().catalogue.nodes
        return node in known or any(peer.node == node for peer in self._peers())

    async def _renew(self, body: Any, caller: Caller) -> str:
        authority = self._authority()
        if authority is None or not isinstance(body, str):
            raise PeerRefused("this node does not keep the cluster's CA")
        if caller.node not in self._control.view().catalogue.nodes:
            raise PeerRefused(f"node {caller.node} is not a member")
        _log.info("certificate renewed", node=caller.node)
        return sign(authority, body, caller.node)[0]

    async def _tell_authority(self, _body: Any, caller: Caller) -> str:
        authority = self._authority()
        if authority is None or not self._may_keep(caller.node):
            raise PeerRefused(f"node {caller.node} is not to keep the cluster's CA")
        _log.info("the CA goes to another node", node=caller.node)
        return authority.to_pem()

    async def _tell_keeping(self, _body: Any, _caller: Caller) -> bool:
        return self._authority() is not None and self._may_keep(self._me)


def sign(authority: Authority, request_pem: str, node: NodeId) -> tuple[str, str]:
    """A certificate for ``node`` in PEM, and its fingerprint. Raises PeerRefused."""
    pem = authority.sign(request_pem, node, now_seconds=time.time())
    certificate = x509.load_pem_x509_certificate(pem.encode())
    return pem, fingerprint_of(certificate.public_bytes(serialization.Encoding.DER))


def claim_of(request_pem: str, node: NodeId) -> str:
    """Names the key that asks, and who it asks to be. Raises PeerRefused when it does not sign its own
    request."""
    try:
        request = x509.load_pem_x509_csr(request_pem.encode())
    except ValueError as error:
        raise PeerRefused(f"the certificate request cannot be read: {error}") from error
    if not request.is_signature_valid:
        raise PeerRefused("the certificate request is not signed by its own key")
    public = request.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(public + node.encode()).hexdigest()[:32]


def _member_already(node: NodeId) -> PeerRefused:
    return PeerRefused(
        f"node {node} is a member already",
        hint="start the new one with an empty data directory: it joins as a new node",
    )


def _denied(result: Denied, application: Application) -> PeerRefused:
    if result.reason is Reason.NAME_TAKEN:
        return PeerRefused(
            f"the cluster has a node called {application.name} already: {result.message}",
            hint="choose another with --name; or, if that node will never come back, remove it with "
            f"`sllmd node rm {application.name}`",
        )
    if result.reason is Reason.REMOVED:
        return PeerRefused(
            f"node {application.node} was removed from the cluster",
            hint="start it with an empty data directory: it joins as a new node",
        )
    if result.reason is Reason.CONFLICT:
        return _member_already(application.node)
    return PeerRefused(f"the cluster did not admit node {application.node}: {result.message}")

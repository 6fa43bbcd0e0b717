"""A node that wants to join: it makes sure of the cluster before it says anything secret.

1. It connects without a certificate, believing nobody, and asks for the CA's certificate.
2. It compares that with the pin in its token; or, if it has the cluster key, asks for proof that the other
   side has it, too. It compares clocks: certificates are good from then to then, and TLS does not say by
   how much a clock is wrong.
3. It connects again; now TLS proves that the server's certificate is of that CA. Only here goes the secret.
"""

from __future__ import annotations

import os
import time
from typing import Any

import structlog

from sllmd.core.errors import PeerRefused, ProtocolError
from sllmd.core.ids import NodeId
from sllmd.core.units import format_seconds
from sllmd.wire.addresses import format_address
from sllmd.wire.cluster_key import NONCE_BYTES, ClusterKey
from sllmd.wire.identity import BACKDATED_SECONDS, pin_of
from sllmd.wire.rpc.connection import Connection, Local
from sllmd.wire.rpc.dialing import dial_with
from sllmd.wire.rpc.hello import Hello
from sllmd.wire.rpc.methods import Caller, Methods
from sllmd.wire.rpc.settings import RpcSettings
from sllmd.wire.tls import anonymous_client
from sllmd.wire.token import JoinToken, check_pin

AUTHORITY_METHOD = "join.authority"
JOIN_METHOD = "join"
CLOCK_SECONDS_WARN = 60.0
"""A clock that nobody sets is off by a minute within weeks."""
CLOCK_SECONDS_MAX = BACKDATED_SECONDS / 2
"""To a node that is so far behind, a certificate that was just signed is good, and there is as much to spare
for a third node's clock."""

_log = structlog.get_logger(__name__)


def offer_authority(methods: Methods, ca_pem: str, key: ClusterKey | None = None) -> None:
    """Tell strangers the CA's certificate: it is public, and recognised by its pin, or vouched for."""

    async def authority(body: Any, _caller: Caller) -> dict[str, Any]:
        match body:
            case bytes(nonce) if key is not None and len(nonce) == NONCE_BYTES:
                proof = key.vouch(nonce, ca_pem)
            case _:
                proof = b""
        return {"ca": ca_pem, "proof": proof, "now": time.time()}

    methods.unary(AUTHORITY_METHOD, authority, strangers=True)


async def fetch_authority(
    host: str, port: int, secret: JoinToken | ClusterKey, settings: RpcSettings
) -> tuple[str, JoinToken]:
    """The CA's certificate, made sure of by ``secret``, and the token to join with. Nothing secret leaves
    this node.

    Raises PeerRefused when pin or proof does not match, when the clocks differ by much, or as ``dial``.
    """
    nonce = os.urandom(NONCE_BYTES)
    connection = await dial_stranger(host, port, settings)
    try:
        answer = await connection.call(
            AUTHORITY_METHOD, nonce, deadline_seconds=settings.connect_timeout_seconds
        )
    finally:
        await connection.close()
    match answer:
        case {"ca": str(ca_pem), "proof": bytes(proof), "now": float(now_seconds)}:
            pass
        case _:
            raise ProtocolError("the CA's certificate that came is none")
    if isinstance(secret, ClusterKey):
        secret.check_vouched(nonce, ca_pem, proof)
        token = secret.token_for(pin_of(ca_pem))
    else:
        check_pin(secret, pin_of(ca_pem))
        token = secret
    check_clock(time.time() - now_seconds, format_address(host, port))
    return ca_pem, token


def check_clock(ahead_seconds: float, other: str) -> None:
    """Raises PeerRefused when this machine's clock is too far from another's; warns when it is off."""
    off_seconds, way = abs(ahead_seconds), "ahead of" if ahead_seconds > 0 else "behind"
    said = f"this machine's clock is {format_seconds(off_seconds)} {way} that of {other}"
    if off_seconds > CLOCK_SECONDS_MAX:
        raise PeerRefused(
            said, hint=f"set both clocks (NTP): at most {format_seconds(CLOCK_SECONDS_MAX)} are allowed"
        )
    if off_seconds > CLOCK_SECONDS_WARN:
        _log.warning(
            said, hint="set both clocks (NTP): ends of tokens and times in logs are off by that much"
        )


async def dial_stranger(host: str, port: int, settings: RpcSettings) -> Connection:
    """A connection of somebody without a certificate to somebody whose certificate is not believed."""
    return await dial_with(_stranger(settings), host, port, anonymous_client(None))


async def ask_to_join(
    host: str,
    port: int,
    secret: JoinToken | ClusterKey | None,
    request: dict[str, Any],
    settings: RpcSettings,
) -> Any:
    """The answer of the cluster's ``join`` method to ``request`` with the token's id and secret in it.

    ``secret`` None: plain TCP without one, what ``--dev`` nodes on loopback do. Raises as ``dial``, and what
    the method raises.
    """
    context, proof = None, {}
    if secret is not None:
        ca_pem, token = await fetch_authority(host, port, secret, settings)
        context = anonymous_client(ca_pem)
        proof = {"token_id": token.token_id, "secret": token.secret}
    connection = await dial_with(_stranger(settings), host, port, context)
    try:
        return await connection.call(JOIN_METHOD, request | proof)
    finally:
        await connection.close()


def _stranger(settings: RpcSettings) -> Local:
    return Local(
        hello=lambda: Hello(cluster="", node=NodeId("")),
        methods=Methods(),
        settings=settings,
        tls=None,
    )

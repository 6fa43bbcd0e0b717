"""A node that wants to join: it makes sure of the cluster before it says anything secret.

1. It connects without a certificate, believing nobody, and asks for the CA's certificate.
2. It compares that with the pin in its token.
3. It connects again; now TLS proves that the server's certificate is of that CA. Only here goes the secret.
"""

from __future__ import annotations

from typing import Any

from sllmd.core.errors import ProtocolError
from sllmd.core.ids import NodeId
from sllmd.wire.identity import pin_of
from sllmd.wire.rpc.connection import Local
from sllmd.wire.rpc.dialing import dial_with
from sllmd.wire.rpc.hello import Hello
from sllmd.wire.rpc.methods import Caller, Methods
from sllmd.wire.rpc.settings import RpcSettings
from sllmd.wire.tls import anonymous_client
from sllmd.wire.token import JoinToken, check_pin

AUTHORITY_METHOD = "join.authority"
JOIN_METHOD = "join"


def offer_authority(methods: Methods, ca_pem: str) -> None:
    """Tell strangers the CA's certificate: it is public, and recognised by its pin."""

    async def authority(_body: Any, _caller: Caller) -> str:
        return ca_pem

    methods.unary(AUTHORITY_METHOD, authority, strangers=True)


async def fetch_authority(host: str, port: int, token: JoinToken, settings: RpcSettings) -> str:
    """The CA's certificate, which is the one that ``token`` names. Nothing secret leaves this node.

    Raises PeerRefused when the pin does not match, or as ``dial``.
    """
    connection = await dial_with(_stranger(settings), host, port, anonymous_client(None))
    try:
        ca_pem = await connection.call(AUTHORITY_METHOD, deadline_seconds=settings.connect_timeout_seconds)
    finally:
        await connection.close()
    if not isinstance(ca_pem, str):
        raise ProtocolError("the CA's certificate that came is none")
    check_pin(token, pin_of(ca_pem))
    return ca_pem


async def ask_to_join(
    host: str, port: int, token: JoinToken | None, request: dict[str, Any], settings: RpcSettings
) -> Any:
    """The answer of the cluster's ``join`` method to ``request`` with the token's id and secret in it.

    ``token`` None: plain TCP without one, what ``--dev`` nodes on loopback do. Raises as ``dial``, and what
    the method raises.
    """
    context, secret = None, {}
    if token is not None:
        context = anonymous_client(await fetch_authority(host, port, token, settings))
        secret = {"token_id": token.token_id, "secret": token.secret}
    connection = await dial_with(_stranger(settings), host, port, context)
    try:
        return await connection.call(JOIN_METHOD, request | secret)
    finally:
        await connection.close()


def _stranger(settings: RpcSettings) -> Local:
    return Local(
        hello=lambda: Hello(cluster="", node=NodeId("")),
        methods=Methods(),
        settings=settings,
        tls=None,
    )

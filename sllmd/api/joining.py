"""/sllmd/v1: how nodes come in, and the keys they share. Secrets are told once, when they are made."""

from __future__ import annotations

from aiohttp import web
from pydantic import Field

from sllmd.api.following import desk_of
from sllmd.api.orders import Order, read_order
from sllmd.cluster.node import ClusterNode
from sllmd.cluster.settings import join_address
from sllmd.cluster.tokens import LIFETIME_SECONDS, Tokens
from sllmd.core.errors import InvalidRequest

LIFETIME_SECONDS_MAX = 10 * 365 * 86400.0
USES_MAX = 1_000_000


class TokenOrder(Order):
    """Body of POST tokens; may be absent."""

    lifetime_seconds: float = Field(default=LIFETIME_SECONDS, gt=0, le=LIFETIME_SECONDS_MAX)
    uses: int = Field(default=1, ge=1, le=USES_MAX)


async def tokens(request: web.Request) -> web.Response:
    """Handler: join tokens that may still be used; never a secret."""
    found = [
        {
            "id": one.token_id,
            "expires_at": one.expires_at_seconds,
            "uses_left": one.uses_left,
            "used": one.used,
        }
        for one in _tokens(request).list()
    ]
    return web.json_response({"tokens": found})


async def create_token(request: web.Request) -> web.Response:
    """Handler: a new join token; the answer is the only place that ever holds it whole."""
    order = await read_order(request, TokenOrder)
    token, expires_at_seconds = await _tokens(request).create(
        lifetime_seconds=order.lifetime_seconds, uses=order.uses
    )
    return web.json_response(
        {
            "token": str(token),
            "id": token.token_id,
            "expires_at": expires_at_seconds,
            "uses": order.uses,
            "join": join_address(_cluster(request).address),
        }
    )


async def revoke_token(request: web.Request) -> web.Response:
    """Handler: nobody joins with it any more."""
    token_id = request.match_info["token_id"]
    await _tokens(request).revoke(token_id)
    return web.json_response({"id": token_id, "revoked": True})


async def keyring(request: web.Request) -> web.Response:
    """Handler: which gossip keys each living node has installed, by id; the first one seals."""
    node = _cluster(request)
    found, lost = await node.keyrings.status()
    names = {view.node: view.name for view in node.membership.members()}
    rows = [{"node": names.get(one.node, ""), "id": one.node, "keys": one.keys} for one in found]
    unreachable = [{"node": names.get(one, ""), "id": one, "reason": reason} for one, reason in lost.items()]
    return web.json_response({"nodes": rows, "unreachable": unreachable})


async def rotate_keyring(request: web.Request) -> web.Response:
    """Handler: a fresh gossip key everywhere in place of the one in use; answers once all have it."""
    return web.json_response({"key": await _cluster(request).keyrings.rotate()})


def _cluster(request: web.Request) -> ClusterNode:
    return desk_of(request).fleet.cluster


def _tokens(request: web.Request) -> Tokens:
    found = _cluster(request).tokens
    if found is None:
        raise InvalidRequest(
            "a --dev cluster needs no tokens",
            hint="join it with `sllmd start --dev --join ADDRESS --name NAME`",
        )
    return found


ROUTES = (
    web.get("/sllmd/v1/tokens", tokens),
    web.post("/sllmd/v1/tokens", create_token),
    web.delete("/sllmd/v1/tokens/{token_id}", revoke_token),
    web.get("/sllmd/v1/keyring", keyring),
    web.post("/sllmd/v1/keyring/rotate", rotate_keyring),
)

"""Draining of nodes, asked of any of them; moves are told as server-sent events, one for each."""

from __future__ import annotations

from contextlib import aclosing

from aiohttp import web
from pydantic import Field

from sllmd.api.errors import reply_to
from sllmd.api.events import EventStream
from sllmd.api.following import desk_of
from sllmd.api.orders import Order, read_order
from sllmd.api.rooms import ROOMS
from sllmd.core.errors import SllmdError

DEADLINE_SECONDS = 300.0


class DrainOrder(Order):
    """Body of POST nodes/{node}/drain; may be absent."""

    deadline_seconds: float = Field(default=DEADLINE_SECONDS, ge=0, le=24 * 3600)
    """How long what runs may take to move or to finish; it is not cut short after that."""
    migrate: bool = True
    """False: it finishes where it is."""


async def drain(request: web.Request) -> web.StreamResponse:
    """Handler: no new work there from now on, and what runs moves; the last event says what is left."""
    order = await read_order(request, DrainOrder)
    steps = desk_of(request).drain(request.match_info["node"], order.deadline_seconds, moves=order.migrate)
    async with aclosing(steps), EventStream(request, request.app[ROOMS].settings) as events:
        first = await anext(steps)
        await events.open({}, f"data: {first.model_dump_json()}\n\n".encode())
        try:
            async for step in steps:
                await events.send(f"data: {step.model_dump_json()}\n\n".encode())
        except SllmdError as error:
            await events.fail(reply_to(error))
        else:
            await events.end()
    return events.response


async def undrain(request: web.Request) -> web.Response:
    """Handler: the node takes work again."""
    member = await desk_of(request).undrain(request.match_info["node"])
    return web.json_response({"node": member.name, "id": member.id, "drained": False})


ROUTES = (
    web.post("/sllmd/v1/nodes/{node}/drain", drain),
    web.post("/sllmd/v1/nodes/{node}/undrain", undrain),
)

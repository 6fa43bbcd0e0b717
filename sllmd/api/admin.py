"""/sllmd/v1: the node as its operator sees and moves it. Bodies are those of ``roles.status``."""

from __future__ import annotations

from contextlib import aclosing
from http import HTTPStatus
from typing import Literal

from aiohttp import web
from pydantic import Field

from sllmd.api.chunks import compact
from sllmd.api.errors import HttpRefusal, reply_of
from sllmd.api.events import EventStream
from sllmd.api.following import desk_of
from sllmd.api.orders import Order, read_order
from sllmd.api.rooms import EXCHANGE, ROOMS, error_response
from sllmd.core.ids import ModelName, NodeId
from sllmd.roles.moves import Selection
from sllmd.roles.status import MovedStatus, PlanStatus


class LoadOrder(Order):
    """Body of POST models/{model}/load; may be absent."""

    tier: Literal["dram", "device"] = "device"
    stream: bool = True
    """False: one answer when the load is over, instead of events."""


class MigrateOrder(Order):
    """Body of POST requests/{request}/migrate and models/{model}/migrate; may be absent."""

    to: str | None = Field(default=None, min_length=1)
    """A node's name or id; absent: the best other node, for each generation."""


class UnloadOrder(Order):
    """Body of POST models/{model}/unload; may be absent."""

    keep_dram: bool = False


class EvictOrder(Order):
    """Body of POST cache/evict."""

    model: str = Field(min_length=1)


async def status(request: web.Request) -> web.Response:
    """Handler: the whole node at a glance."""
    return web.json_response(text=request.app[ROOMS].operator.status().model_dump_json())


async def models(request: web.Request) -> web.Response:
    """Handler: the catalogue."""
    cards = request.app[ROOMS].router.models()
    return web.json_response({"models": [card.model_dump() for card in cards]})


async def model(request: web.Request) -> web.Response:
    """Handler: one model, by name or alias."""
    card = request.app[ROOMS].router.model(request.match_info["model"])
    return web.json_response(text=card.model_dump_json())


async def plan(request: web.Request) -> web.Response:
    """Handler: where the model would start soonest now, as whoever leads sees it. Nothing is done."""
    name = ModelName(request.app[ROOMS].router.model(request.match_info["model"]).name)
    found = PlanStatus.of(await desk_of(request).asking.plan(name))
    return web.json_response(text=compact({"plan": found.model_dump(), "names": _names(request)}))


def _names(request: web.Request) -> dict[str, str]:
    """The nodes' names, by id."""
    desk = request.app[ROOMS].operator.cluster
    return {member.id: member.name for member in desk.fleet.status().members} if desk is not None else {}


async def load(request: web.Request) -> web.StreamResponse:
    """Handler: lift a model; an event per step, the last one ``ready`` or ``error``."""
    rooms = request.app[ROOMS]
    name = request.match_info["model"]
    order = await read_order(request, LoadOrder)
    request[EXCHANGE].model = rooms.router.model(name).name
    async with (
        aclosing(rooms.operator.load(name, order.tier)) as steps,
        EventStream(request, rooms.settings) as events,
    ):
        if not order.stream:
            last = [step async for step in steps][-1]
            if last.status == "error":
                return error_response(reply_of(last.code, last.message or ""), request[EXCHANGE])
            return web.json_response(text=last.model_dump_json())
        await events.open({})
        async for step in steps:
            await events.send(f"data: {step.model_dump_json()}\n\n".encode())
        await events.end()
    return events.response


async def unload(request: web.Request) -> web.Response:
    """Handler: stop the model's replica once it is idle; free its DRAM unless told to keep it."""
    order = await read_order(request, UnloadOrder)
    report = await request.app[ROOMS].operator.unload(request.match_info["model"], keep_dram=order.keep_dram)
    return web.json_response(text=report.model_dump_json())


async def cache(request: web.Request) -> web.Response:
    """Handler: the DRAM tier's books."""
    return web.json_response(text=request.app[ROOMS].operator.cache().model_dump_json())


async def evict(request: web.Request) -> web.Response:
    """Handler: free a model's copy in DRAM; 0 bytes when it is in use or not there."""
    order = await read_order(request, EvictOrder)
    freed_bytes = request.app[ROOMS].operator.evict(order.model)
    return web.json_response({"model": order.model, "freed_bytes": freed_bytes})


async def replicas(request: web.Request) -> web.Response:
    """Handler: loaded copies and those on their way."""
    found = request.app[ROOMS].operator.replicas()
    return web.json_response({"replicas": [replica.model_dump() for replica in found]})


async def loaded(request: web.Request) -> web.Response:
    """Handler: what every node of the cluster has loaded."""
    found, silent = await request.app[ROOMS].operator.survey.loaded()
    names = _names(request)
    unreachable = [
        {"node": names.get(node, ""), "id": node, "reason": reason} for node, reason in silent.items()
    ]
    body = {"nodes": [each.model_dump() for each in found], "unreachable": unreachable}
    return web.json_response(text=compact(body))


async def requests(request: web.Request) -> web.Response:
    """Handler: generations, running ones first, then the recent ones."""
    found = request.app[ROOMS].router.requests()
    return web.json_response({"requests": [entry.model_dump() for entry in found]})


async def one_request(request: web.Request) -> web.Response:
    """Handler: the generations of one request, on whichever node, and where their time went; ``last``: of
    this node's latest."""
    wanted = request.match_info["request_id"]
    rooms = request.app[ROOMS]
    found = rooms.router.requests()
    if wanted == "last" and found:
        wanted = found[0].request_id
    mine = await rooms.operator.survey.request(wanted)
    if not mine:
        which = "" if wanted == "last" else f" `{wanted}`"
        raise HttpRefusal(
            HTTPStatus.NOT_FOUND, "request_not_found", f"No request{which} is running or remembered."
        )
    generations = [entry.model_dump() for entry in mine]
    body = {"request_id": wanted, "generations": generations, "names": _names(request)}
    return web.json_response(text=compact(body))


async def migrate_request(request: web.Request) -> web.Response:
    """Handler: move what runs of one request; answers when it has moved, or has not, and why."""
    wanted = request.match_info["request_id"]
    moved = await _migrate(request, Selection(request_id=wanted))
    if not moved:
        raise HttpRefusal(
            HTTPStatus.NOT_FOUND, "request_not_found", f"Nothing of request `{wanted}` is running."
        )
    return _moves_answer(moved)


async def migrate_model(request: web.Request) -> web.Response:
    """Handler: move every generation of a model, on whichever nodes they run; none is no error."""
    name = request.app[ROOMS].router.model(request.match_info["model"]).name
    return _moves_answer(await _migrate(request, Selection(model=name)))


async def _migrate(request: web.Request, selection: Selection) -> list[MovedStatus]:
    order = await read_order(request, MigrateOrder)
    target = None if order.to is None else NodeId(desk_of(request).fleet.find(order.to).id)
    return await request.app[ROOMS].operator.moves.everywhere(selection, target, "an operator asked for it")


def _moves_answer(moved: list[MovedStatus]) -> web.Response:
    return web.json_response({"generations": [each.model_dump() for each in moved]})


ROUTES = (
    web.get("/sllmd/v1/status", status),
    web.get("/sllmd/v1/models", models),
    web.post("/sllmd/v1/models/{model:.+}/load", load),
    web.post("/sllmd/v1/models/{model:.+}/unload", unload),
    web.get("/sllmd/v1/models/{model:.+}/plan", plan),
    web.get("/sllmd/v1/models/{model:.+}", model),
    web.post("/sllmd/v1/models/{model:.+}/migrate", migrate_model),
    web.get("/sllmd/v1/cache", cache),
    web.post("/sllmd/v1/cache/evict", evict),
    web.get("/sllmd/v1/replicas", replicas),
    web.get("/sllmd/v1/loaded", loaded),
    web.get("/sllmd/v1/requests", requests),
    web.get("/sllmd/v1/requests/{request_id}", one_request),
    web.post("/sllmd/v1/requests/{request_id}/migrate", migrate_request),
)

"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from aiohttp import web

from sllmd.api.openai import ModelList, ModelObject
from sllmd.api.rooms import ROOMS
from sllmd.roles.status import ModelCard


async def list_models(request: web.Request) -> web.Response:
    """Handler: the catalogue, aliases beside their model."""
    cards = request.app[ROOMS].router.models()
    return web.json_response(text=ModelList(data=[_model(card) for card in cards]).model_dump_json())


async def show_model(request: web.Request) -> web.Response:
    """Handler: one model, by name or alias."""
    card = request.app[ROOMS].router.model(request.match_info["model"])
    return web.json_response(text=_model(card).model_dump_json())


def _model(card: ModelCard) -> ModelObject:
    return ModelObject(
        id=card.name,
        created=card.created,
        max_model_len=card.context_tokens,
        aliases=list(card.aliases),
        state=card.state,
    )

"""Orders of an operator: bodies that may be absent, and hold nothing that is not understood."""

from __future__ import annotations

from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from sllmd.api.parsing import parse_plain
from sllmd.api.rooms import read_body


class Order(BaseModel):
    """The body of an order."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


_AnyOrder = TypeVar("_AnyOrder", bound=Order)


async def read_order(request: web.Request, kind: type[_AnyOrder]) -> _AnyOrder:
    """The order in the body; no body asks for the defaults. Raises InvalidRequest."""
    if not request.body_exists:
        return parse_plain(kind, {})
    return await read_body(request, lambda body, _: parse_plain(kind, body))

"""What handlers work with: the rooms below, and what is known of the request in hand."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from aiohttp import web

from sllmd.api.errors import HttpRefusal
from sllmd.api.keys import KeyRing
from sllmd.api.parsing import parse_json
from sllmd.api.settings import ApiSettings
from sllmd.core.errors import BodyTooLarge, InvalidRequest
from sllmd.core.ids import RequestId
from sllmd.roles.operator import Operator
from sllmd.roles.router import Router
from sllmd.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Rooms:
    """What the API asks."""

    router: Router
    operator: Operator
    settings: ApiSettings
    metrics: Metrics
    keys: KeyRing


UNKNOWN_MODEL = "unknown"
"""What metrics call the model of a request that names none, or none that there is."""


@dataclass(slots=True)
class Exchange:
    """One request and its answer, for headers, log and metrics."""

    request_id: RequestId
    endpoint: str
    began_seconds: float = field(default_factory=time.monotonic)
    model: str = UNKNOWN_MODEL
    """The catalogue's name, once known: a bounded label."""
    key_id: str | None = None
    error_code: str | None = None


ROOMS = web.AppKey("rooms", Rooms)
EXCHANGE = web.RequestKey("exchange", Exchange)


async def read_json(request: web.Request) -> dict[str, Any]:
    """The JSON object in the body, whatever its content type claims.

    Raises InvalidRequest, BodyTooLarge and HttpRefusal.
    """
    settings = request.app[ROOMS].settings
    limit_bytes = int(settings.body_max_bytes)
    if request.content_length is not None and request.content_length > limit_bytes:
        raise _too_large(limit_bytes)
    try:
        async with asyncio.timeout(settings.body_timeout):
            raw = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise _too_large(limit_bytes) from error
    except TimeoutError as error:
        raise HttpRefusal(
            HTTPStatus.REQUEST_TIMEOUT,
            "request_timeout",
            f"The body did not arrive within {settings.body_timeout:g} s.",
        ) from error
    except web.RequestPayloadError as error:
        raise InvalidRequest(f"The body could not be read: {error}.", code="invalid_body") from error
    return parse_json(raw, settings)


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body is longer than {limit_bytes} bytes.", hint="raise [api] body_max_bytes to allow it"
    )

"""What handlers work with: the rooms below, and what is known of the request in hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar

import structlog
from aiohttp import web

from sllmd.api.chunks import compact
from sllmd.api.errors import ErrorReply, HttpRefusal
from sllmd.api.keys import KeyRing
from sllmd.api.parsing import parse_json
from sllmd.api.settings import ApiSettings
from sllmd.core.errors import (
    BodyTooLarge,
    BusyError,
    CheckpointError,
    InvalidRequest,
    LoadError,
    SllmdError,
)
from sllmd.core.ids import RequestId
from sllmd.roles.operator import Operator
from sllmd.roles.router import Router
from sllmd.telemetry.metrics import Metrics
from sllmd.text.renderer import Renderer

_log = structlog.get_logger(__name__)
_Read = TypeVar("_Read")

THREAD_BYTES_MIN = 64 * 1024
"""Bodies from this length on are read in a thread, so that streams of others do not wait for them."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """What the API asks."""

    router: Router
    operator: Operator
    settings: ApiSettings
    metrics: Metrics
    keys: KeyRing
    renderer: Renderer

    def count_refusal(self, error: SllmdError) -> None:
        """Count an error that a client is told of."""
        if isinstance(error, BusyError):
            self.metrics.requests_rejected_total.labels(error.code).inc()
        if isinstance(error, LoadError | CheckpointError):
            self.metrics.load_failures_total.labels(error.code).inc()
            _log.warning("model could not be served", reason=str(error))


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


def error_response(reply: ErrorReply, exchange: Exchange) -> web.Response:
    """The answer that tells of an error."""
    exchange.error_code = reply.code
    return web.Response(
        status=reply.status,
        text=compact(reply.body()),
        content_type="application/json",
        headers=reply.headers,
    )


async def read_body(request: web.Request, parse: Callable[[Mapping[str, Any], ApiSettings], _Read]) -> _Read:
    """What ``parse`` makes of the JSON object in the body, whatever its content type claims.

    Raises what ``parse`` raises, InvalidRequest, BodyTooLarge and HttpRefusal.
    """
    settings = request.app[ROOMS].settings
    raw = await _read_raw(request, settings)

    def read() -> _Read:
        return parse(parse_json(raw, settings), settings)

    return await asyncio.to_thread(read) if len(raw) >= THREAD_BYTES_MIN else read()


async def _read_raw(request: web.Request, settings: ApiSettings) -> bytes:
    limit_bytes = int(settings.body_max_bytes)
    if request.content_length is not None and request.content_length > limit_bytes:
        raise _too_large(limit_bytes)
    try:
        async with asyncio.timeout(settings.body_timeout):
            return await request.read()
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


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body is longer than {limit_bytes} bytes.", hint="raise [api] body_max_bytes to allow it"
    )

"""Around every request: its id, its key, errors into envelopes, headers, one log line, one count."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from uuid import uuid4

import structlog
from aiohttp import web

import sllmd
from sllmd.api.access import ADMIN_PREFIX, OPEN_PATHS, allowed_origin, authorize
from sllmd.api.errors import HttpRefusal, internal_reply, reply_to
from sllmd.api.rooms import EXCHANGE, ROOMS, UNKNOWN_MODEL, Exchange, Rooms, error_response
from sllmd.api.sending import send_whole
from sllmd.core.errors import SllmdError
from sllmd.core.ids import RequestId

_log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
PROBES = OPEN_PATHS | {"/metrics"}
"""Asked every few seconds by machines."""
CLIENT_CLOSED = 499
"""What logs and metrics call a request whose client left, after nginx."""
_EXPOSED_HEADERS = (
    "x-request-id, openai-processing-ms, Server-Timing, X-Sllmd-Node, X-Sllmd-Ran-On, X-Sllmd-Cold,"
    " X-Sllmd-Tier, X-Sllmd-Ignored-Params, Retry-After"
)


@web.middleware
async def exchange_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id and its answer a status, whatever happens."""
    rooms = request.app[ROOMS]
    exchange = Exchange(_request_id(request), _endpoint(request))
    request[EXCHANGE] = exchange
    status = CLIENT_CLOSED
    try:
        response = await _answer(request, handler, exchange, rooms)
        if isinstance(response, web.Response):
            response = await send_whole(request, response, rooms.settings.stalled_client_timeout)
        status = response.status
    except (asyncio.CancelledError, ConnectionError):
        rooms.metrics.client_disconnects_total.labels(exchange.endpoint).inc()
        raise
    else:
        return response
    finally:
        _record(rooms, exchange, request, status)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Headers of every response, set when they go out."""
    exchange = request.get(EXCHANGE)
    response.headers["Server"] = f"sllmd/{sllmd.__version__}"
    if exchange is None:
        return
    elapsed_ms = (time.monotonic() - exchange.began_seconds) * 1000
    response.headers["x-request-id"] = exchange.request_id
    response.headers["X-Sllmd-Node"] = request.app[ROOMS].operator.node
    response.headers["openai-processing-ms"] = str(round(elapsed_ms))
    origin = allowed_origin(request, request.app[ROOMS].settings)
    if origin is not None:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
        response.headers["Vary"] = "Origin"


async def _answer(
    request: web.Request, handler: Handler, exchange: Exchange, rooms: Rooms
) -> web.StreamResponse:
    try:
        preflight = _preflight(request, rooms)
        if preflight is not None:
            return preflight
        key = authorize(request)
        exchange.key_id = key.id if key else None
        return await handler(request)
    except SllmdError as error:
        rooms.count_refusal(error)
        return error_response(reply_to(error), exchange)
    except web.HTTPException as error:
        return error_response(reply_to(_refusal(request, error)), exchange)
    except ConnectionError:
        raise
    except Exception:  # noqa: BLE001 - a defect costs one request, not the daemon
        _log.exception("request failed", request_id=exchange.request_id, endpoint=exchange.endpoint)
        return error_response(internal_reply(exchange.request_id), exchange)


def _request_id(request: web.Request) -> RequestId:
    """The client's id if it is harmless to repeat, else a new one."""
    given = request.headers.get("x-request-id", "")
    return RequestId(given if _SANE_REQUEST_ID.fullmatch(given) else f"req_{uuid4().hex}")


def _endpoint(request: web.Request) -> str:
    """The route's pattern: a bounded label."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


def _refusal(request: web.Request, error: web.HTTPException) -> HttpRefusal:
    """aiohttp's own refusals in our words."""
    status = HTTPStatus(error.status)
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return HttpRefusal(
            status,
            "method_not_allowed",
            f"{request.method} is not allowed here; {allowed} is.",
            headers={"Allow": allowed},
        )
    if status is HTTPStatus.NOT_FOUND:
        return HttpRefusal(status, "unknown_url", f"Unknown URL: {request.method} {request.path[:256]}")
    return HttpRefusal(status, "invalid_request", error.reason)


def _preflight(request: web.Request, rooms: Rooms) -> web.Response | None:
    """The answer to a browser that asks whether a page may ask."""
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
        return None
    if allowed_origin(request, rooms.settings) is None:
        return None
    wanted = request.headers.get("Access-Control-Request-Headers", "authorization, content-type")
    return web.Response(
        status=HTTPStatus.NO_CONTENT,
        headers={
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": wanted,
            "Access-Control-Max-Age": "600",
        },
    )


def _is_watching(request: web.Request) -> bool:
    """Whether this only looks, as probes and `sllmd ps` do: logged for those who look closely."""
    return request.path in PROBES or (request.method == "GET" and request.path.startswith(ADMIN_PREFIX))


def _record(rooms: Rooms, exchange: Exchange, request: web.Request, status: int) -> None:
    seconds = time.monotonic() - exchange.began_seconds
    rooms.metrics.requests_total.labels(exchange.model, exchange.endpoint, str(status)).inc()
    if request.method == "POST":
        rooms.metrics.request_duration_seconds.labels(exchange.model).observe(seconds)
    if rooms.settings.access_log:
        log = _log.debug if _is_watching(request) else _log.info
        log(
            "request",
            method=request.method,
            path=request.path,
            status=status,
            seconds=round(seconds, 4),
            request_id=exchange.request_id,
            model=None if exchange.model == UNKNOWN_MODEL else exchange.model,
            key=exchange.key_id,
            error=exchange.error_code,
        )

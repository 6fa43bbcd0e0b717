"""Who may ask what: keys, scopes, and browsers that somebody else's page drives.

1. A Unix socket: its file permissions are the authentication.
2. A key is needed (see ``key_needed``): it must be known, and have scope ``admin`` under /sllmd/.
3. No key is needed (loopback, and no key exists): a web page of another origin is refused, since any page
   that somebody visits can reach their loopback; and so is a name that could be a rebound one: only loopback
   names, IP addresses and ``[api] hosts`` are answered to, by /sllmd/ only loopback names.
4. Pages of ``[api] cors_origins`` may use the models; /sllmd/ is never for pages of others.
"""

from __future__ import annotations

import socket
from http import HTTPStatus
from urllib.parse import urlsplit

from aiohttp import web

from sllmd.api.errors import HttpRefusal
from sllmd.api.exposure import key_needed
from sllmd.api.keys import ApiKey, host_name, is_ip_address, is_loopback, presented_secret
from sllmd.api.rooms import ROOMS, Rooms
from sllmd.api.settings import ApiSettings
from sllmd.core.errors import ControlUnavailable, InvalidApiKey

RETRY_SECONDS = 1.0
"""Told to a client of a node that does not know its cluster's keys yet."""
_NO_KEY_HINT = (
    "send `Authorization: Bearer KEY` or `x-api-key: KEY`; `sllmd keys create`, on the server over its Unix "
    "socket, makes a key"
)
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/version"})
"""Probes have no keys, and these tell nothing."""
ADMIN_PREFIX = "/sllmd/"
GENERATIONS_PREFIX = "/sllmd/v1/generations/"
"""Below it a client comes back for what it began: it needs no more than the key that it began with."""


def authorize(request: web.Request) -> ApiKey | None:
    """The key that lets this request in; None where none is needed. Raises InvalidApiKey, HttpRefusal."""
    rooms = request.app[ROOMS]
    if _over_unix_socket(request):
        return None
    if not key_needed(rooms.settings, rooms.keys):
        _check_origin(request, rooms.settings)
        _check_host(request, rooms.settings)
        return None
    if request.path in OPEN_PATHS or (request.path == "/metrics" and not rooms.settings.metrics_require_key):
        return None
    return _checked_key(request, rooms)


def allowed_origin(request: web.Request, settings: ApiSettings) -> str | None:
    """The page of others that asks, if it may."""
    origin = request.headers.get("Origin")
    if origin is None or request.path.startswith(ADMIN_PREFIX):
        return None
    return origin if origin in settings.cors_origins or "*" in settings.cors_origins else None


def _checked_key(request: web.Request, rooms: Rooms) -> ApiKey:
    secret, keys = presented_secret(request.headers), rooms.keys
    key = keys.find(secret) if secret is not None else None
    if key is None and not keys.complete:
        raise ControlUnavailable(
            "This node has not heard yet which API keys its cluster has.",
            retry_after_seconds=RETRY_SECONDS,
            hint="wait for it to meet the other nodes; its Unix socket needs no key",
        )
    if key is None and not len(keys):
        raise InvalidApiKey(
            "No API key exists yet.", hint="on the server, `sllmd keys create` makes one over its Unix socket"
        )
    if secret is None:
        raise InvalidApiKey("You didn't provide an API key.", hint=_NO_KEY_HINT)
    if key is None:
        raise InvalidApiKey("Incorrect API key provided.")
    is_own = request.path.startswith(GENERATIONS_PREFIX)
    scope = "admin" if request.path.startswith(ADMIN_PREFIX) and not is_own else "inference"
    if scope not in key.scopes:
        raise HttpRefusal(
            HTTPStatus.FORBIDDEN,
            "insufficient_scope",
            f"This API key does not have scope `{scope}`; `sllmd keys create --scope {scope}`, on a node, "
            "makes one that does.",
        )
    return key


def _check_origin(request: web.Request, settings: ApiSettings) -> None:
    origin = request.headers.get("Origin")
    host = request.headers.get("Host", "")
    foreign = origin is not None and urlsplit(origin).netloc != host
    if foreign and allowed_origin(request, settings) is None:
        raise HttpRefusal(
            HTTPStatus.FORBIDDEN,
            "origin_not_allowed",
            "Pages of this origin may not use this server; [api] cors_origins allows some.",
        )


def _check_host(request: web.Request, settings: ApiSettings) -> None:
    """A browser always says which name it asked for; who does not say is none."""
    host = request.headers.get("Host", "")
    if is_loopback(host):
        return
    if request.path.startswith(ADMIN_PREFIX):
        raise HttpRefusal(
            HTTPStatus.FORBIDDEN,
            "host_not_allowed",
            "Without a key, /sllmd/ is only served to loopback names such as 127.0.0.1 and localhost.",
        )
    name = host_name(host)
    if name and not is_ip_address(name) and name not in settings.hosts and "*" not in settings.hosts:
        raise HttpRefusal(
            HTTPStatus.FORBIDDEN,
            "host_not_allowed",
            f"Without a key, this server does not answer to the name `{name[:64]}`; [api] hosts allows it.",
        )


def _over_unix_socket(request: web.Request) -> bool:
    transport = request.transport
    connection = transport.get_extra_info("socket") if transport else None
    return connection is not None and connection.family == socket.AF_UNIX

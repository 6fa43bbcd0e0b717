"""The HTTP server: routes, listening, closing.

Slow clients meet time-outs: for headers and idle connections here, for bodies in ``rooms``, for streams that
nobody reads in ``events``. A client that leaves cancels its handler in every state.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from contextlib import ExitStack
from pathlib import Path

import structlog
from aiohttp import web

from sllmd.api import admin, cluster, draining, health, joining, models, resuming
from sllmd.api.chat import create_chat_completion
from sllmd.api.completions import create_completion
from sllmd.api.connection import Connection
from sllmd.api.exposure import check_exposure, exposed_addresses, key_needed
from sllmd.api.following import CLOSING
from sllmd.api.keys import KeyRing
from sllmd.api.middleware import add_headers, exchange_middleware
from sllmd.api.rooms import ROOMS, Rooms
from sllmd.api.schema import openapi_json
from sllmd.api.settings import PORT_MAX, ApiSettings
from sllmd.api.tokens import detokenize, tokenize
from sllmd.core.errors import ConfigError
from sllmd.roles.operator import Operator
from sllmd.roles.router import Router
from sllmd.telemetry.metrics import Metrics
from sllmd.text.renderer import Renderer
from sllmd.wire.ports import PORTS_TRIED

_log = structlog.get_logger(__name__)

SOCKET_MODE = 0o660
"""Owner and group may open the Unix socket, and so do everything."""


def build_app(
    *,
    router: Router,
    operator: Operator,
    settings: ApiSettings,
    metrics: Metrics,
    keys: KeyRing | None = None,
) -> web.Application:
    """The application without a socket."""
    app = web.Application(client_max_size=int(settings.body_max_bytes), middlewares=[exchange_middleware])
    renderer = Renderer()
    keys = KeyRing(settings.keys_file, operator.agreed_keys) if keys is None else keys
    app[ROOMS] = Rooms(router, operator, settings, metrics, keys, renderer)
    app[CLOSING] = asyncio.Event()
    app.on_shutdown.append(_end_followers)
    app.on_cleanup.append(lambda _: renderer.close())
    app.on_response_prepare.append(add_headers)
    app.add_routes(
        [
            *_openai_routes("/v1"),
            *_openai_routes(""),
            web.post("/tokenize", tokenize),
            web.post("/detokenize", detokenize),
            web.get("/healthz", health.healthz),
            web.get("/readyz", health.readyz),
            web.get("/version", health.version),
            web.get("/metrics", health.metrics),
            *admin.ROUTES,
            *cluster.ROUTES,
            *joining.ROUTES,
            *resuming.ROUTES,
            *draining.ROUTES,
        ]
    )
    if settings.openapi:
        app.router.add_get("/openapi.json", _openapi)
    return app


class ApiServer:
    """The application on its sockets."""

    def __init__(
        self, *, router: Router, operator: Operator, settings: ApiSettings, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._keys = KeyRing(settings.keys_file, operator.agreed_keys)
        self._unix_path: Path | None = None
        self._listeners: list[asyncio.Server] = []
        self._app = build_app(
            router=router, operator=operator, settings=settings, metrics=metrics, keys=self._keys
        )
        self._runner = web.AppRunner(
            self._app,
            handle_signals=False,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=settings.shutdown_timeout,
        )

    async def start(self) -> tuple[str, ...]:
        """Listen everywhere and say where: URLs, then ``unix:/path``.

        Raises ConfigError when an address is taken or cannot be had, and when other machines could reach the
        API without a key.
        """
        check_exposure(self._settings)
        exposed = exposed_addresses(self._settings)
        if exposed and not key_needed(self._settings, self._keys):
            _log.warning(
                "anybody who reaches this machine may use the API: require_key is off", listen=exposed
            )
        if key_needed(self._settings, self._keys) and self._keys.complete and not len(self._keys):
            _log.warning("no API key exists yet: all but probes are refused", hint="`sllmd keys create`")
        sockets = _bound_all(self._settings)
        await self._runner.setup()
        for bound in sockets:
            await self._serve(bound)
        addresses = [_url(bound) for bound in sockets]
        if self._settings.uds is not None:
            await self._listen_unix(self._settings.uds)
            addresses.append(f"unix:{self._settings.uds}")
        return tuple(addresses)

    async def close(self) -> None:
        """Stop listening; open requests get ``shutdown_timeout`` to finish. Harmless when not started."""
        for listener in self._listeners:
            listener.close()
        await self._runner.cleanup()
        if self._unix_path is not None:
            self._unix_path.unlink(missing_ok=True)
            self._unix_path = None

    async def _listen_unix(self, path: Path) -> None:
        if await _answers(path):
            raise ConfigError(
                f"another daemon listens on {path}", hint="stop it, or choose another with --uds ([api] uds)"
            )
        bound = _bound_unix(path, self._settings.backlog)
        self._unix_path = path
        await self._serve(bound)

    async def _serve(self, bound: socket.socket) -> None:
        """What aiohttp's ``SockSite`` does, with connections of our own kind."""
        loop = asyncio.get_running_loop()
        manager = self._runner.server
        assert manager is not None, "the runner is set up first"

        def connection() -> Connection:
            idle_seconds = self._settings.idle_timeout
            return Connection(manager, loop=loop, keepalive_timeout=idle_seconds, access_log=None)  # type: ignore[arg-type]

        listener = await loop.create_server(connection, sock=bound, backlog=self._settings.backlog)
        self._listeners.append(listener)


async def _end_followers(app: web.Application) -> None:
    app[CLOSING].set()


def _openai_routes(prefix: str) -> list[web.RouteDef]:
    """OpenAI's endpoints; also without ``/v1``, for clients whose base address lacks it."""
    return [
        web.post(f"{prefix}/completions", create_completion),
        web.post(f"{prefix}/chat/completions", create_chat_completion),
        web.get(f"{prefix}/models", models.list_models),
        web.get(f"{prefix}/models/{{model:.+}}", models.show_model),
    ]


async def _openapi(_request: web.Request) -> web.Response:
    return web.json_response(text=openapi_json())


def check_addresses(settings: ApiSettings) -> None:
    """Raise ConfigError when the API could not listen where it shall, before anything else is begun."""
    for bound in _bound_all(settings):
        bound.close()


def _bound_all(settings: ApiSettings) -> list[socket.socket]:
    """A listening socket on each address, or on none. Raises ConfigError."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(_bound(address, settings)) for address in settings.listen]
        opened.pop_all()
        return sockets


def _bound(address: str, settings: ApiSettings) -> socket.socket:
    """A listening socket on ``host:port``, or on the next free port. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    tries = PORTS_TRIED if settings.next_free_port and port.isdecimal() and int(port) else 1
    for attempt in range(tries):
        try:
            return _bound_exactly(f"{host}:{int(port) + attempt}" if attempt else address, settings.backlog)
        except ConfigError:
            if attempt == tries - 1:
                raise
    raise AssertionError("one attempt at least")


def _bound_exactly(address: str, backlog: int) -> socket.socket:
    """A listening socket on ``host:port``. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not port.isdecimal() or int(port) > PORT_MAX:
        raise ConfigError(
            f"cannot listen on {address}: not host:port", hint="--listen HOST:PORT ([api] listen)"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=backlog)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise ConfigError(
            f"cannot listen on {address}: {'the port is in use' if taken else error.strerror or error}",
            hint="stop what uses it, or choose another with --listen ([api] listen)",
        ) from error


def _bound_unix(path: Path, backlog: int) -> socket.socket:
    """A listening socket at ``path``, in place of one that a crash left. Raises ConfigError."""
    if path.exists() and not path.is_socket():
        raise ConfigError(f"cannot listen on {path}: there is a file that is no socket", hint="set [api] uds")
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        path.unlink(missing_ok=True)
        bound.bind(str(path))
        path.chmod(SOCKET_MODE)
        bound.listen(backlog)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {path}: {error.strerror or error}", hint="set [api] uds"
        ) from error
    return bound


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _answers(path: Path) -> bool:
    """Whether somebody listens on this Unix socket: a file that a crash left does not."""
    try:
        _, writer = await asyncio.open_unix_connection(str(path))
    except OSError:
        return False
    writer.close()
    return True

"""Conversation with etcd's JSON gateway: any endpoint that answers, TLS, logging in.

Everything that is asked here may be asked twice: whoever asks sees to that.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import aiohttp
import structlog

from sllmd.cluster.etcd.failures import AWAY_HINT, REFUSALS, EtcdAway, EtcdRefused, NotEtcd
from sllmd.cluster.etcd.requests import Json, get
from sllmd.cluster.etcd.settings import EtcdSettings
from sllmd.core.errors import ConfigError
from sllmd.core.units import KIB, MIB
from sllmd.wire.tls import explain_tls

LINE_BYTES_MAX = 32 * MIB
"""One message of a watch: etcd sends at most 1,000 changes at once. A longer one ends the watch, and the next
begins behind what was read in pages."""
PLAIN_BYTES_MAX = 512 * KIB
"""What is longer is sent in parts, so that it does not hold up everything else."""
IDLE_SECONDS = 60.0
"""A connection is kept for the next call this long."""

_log = structlog.get_logger(__name__)


class Gateway:
    """One node's way to etcd. ``open`` it on a running loop; ``close`` it."""

    def __init__(self, settings: EtcdSettings, context: ssl.SSLContext | None, password: str | None) -> None:
        self._settings = settings
        self._password = password
        self._token: str | None = None
        self._etcd: str | None = None
        """The etcd cluster's id: endpoints of another one are not ours."""
        self._stream: tuple[str, asyncio.Timeout] | None = None
        self._endpoints = list(settings.endpoints)
        self._current = random.randrange(len(self._endpoints))
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=settings.request_seconds / 2)
        connector = aiohttp.TCPConnector(
            ssl=context if context is not None else True, keepalive_timeout=IDLE_SECONDS, limit=0
        )
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)

    @classmethod
    def open(cls, settings: EtcdSettings) -> Self:
        """Read certificates and password; nothing is sent yet. Raises ConfigError."""
        return cls(settings, _context(settings), _password(settings))

    async def close(self) -> None:
        """Hang up."""
        await self._session.close()

    @property
    def endpoint(self) -> str:
        """Where the next call goes first."""
        return self._endpoints[self._current]

    async def check(self, key: bytes) -> bool:
        """Whether a key can be read. Raises ConfigError when none of them can be used, now or later."""
        problems, away = [], False
        for endpoint in self._endpoints:
            try:
                async with asyncio.timeout(self._settings.request_seconds):
                    await self._ask(endpoint, "/v3/kv/range", get(key))
            except (EtcdRefused, NotEtcd) as error:
                problems.append(f"{endpoint}: {error}")
            except (aiohttp.ClientError, EtcdAway, TimeoutError, OSError) as error:
                away = True
                cause = _cause(error)
                _log.warning(
                    "an endpoint of etcd does not answer", endpoint=endpoint, cause=cause, hint=AWAY_HINT
                )
            else:
                return True
        if problems and not away:
            raise ConfigError("; ".join(problems), hint="check [cluster.etcd]")
        for problem in problems:
            _log.error("an endpoint of etcd cannot be used", problem=problem)
        return False

    async def call(self, path: str, body: Json, *, try_seconds: float | None = None) -> Json:
        """The answer of the first endpoint that gives one. Raises EtcdAway, EtcdRefused."""
        in_doubt, cause = False, ""
        for _ in self._endpoints:
            endpoint = self.endpoint
            try:
                async with asyncio.timeout(try_seconds or self._settings.request_seconds):
                    return await self._ask(endpoint, path, body)
            except NotEtcd as error:
                cause = f"{endpoint}: {error}"
            except aiohttp.ClientConnectorError as error:
                cause = f"{endpoint}: {_cause(error)}"
            except (aiohttp.ClientError, EtcdAway, TimeoutError, OSError) as error:
                cause = f"{endpoint}: {_cause(error)}"
                in_doubt = in_doubt or not isinstance(error, aiohttp.ConnectionTimeoutError)
            self.avoid(endpoint)
            self.hang_up(endpoint)
        raise EtcdAway(f"etcd does not answer: {cause}", in_doubt=in_doubt)

    def avoid(self, endpoint: str) -> None:
        """Let the next call go elsewhere, if that was where the last one went."""
        if self.endpoint == endpoint:
            self._current = (self._current + 1) % len(self._endpoints)

    @asynccontextmanager
    async def stream(self, path: str, bodies: list[Json]) -> AsyncIterator[AsyncIterator[Json]]:
        """The messages that etcd sends, one stream at a time. Raises EtcdAway, EtcdRefused, also later."""
        endpoint = self.endpoint
        data = "".join(json.dumps(body) for body in bodies).encode()
        limit = asyncio.timeout(None)
        try:
            async with limit, self._post(endpoint, path, data) as response:
                self._stream = (endpoint, limit)
                if response.status != 200:
                    await self._read(endpoint, response)
                yield _messages(response)
        except (aiohttp.ClientError, TimeoutError, OSError, NotEtcd) as error:
            raise EtcdAway(f"{endpoint}: {_cause(error)}", in_doubt=False) from error
        finally:
            self._stream = None
            self.avoid(endpoint)  # a stream that goes well does not end

    def hang_up(self, endpoint: str | None = None) -> None:
        """End the stream, if it goes there: where calls fail, streams stay silent. None: wherever it goes."""
        if self._stream is not None and endpoint in (None, self._stream[0]):
            (_, limit), self._stream = self._stream, None
            limit.reschedule(asyncio.get_running_loop().time())

    def log_in_again(self) -> None:
        """The token is not accepted any more: the next call gets a new one."""
        self._token = None

    async def _ask(self, endpoint: str, path: str, body: Json) -> Json:
        data = json.dumps(body).encode()
        if self._settings.username is not None and self._token is None:
            await self._log_in(endpoint)
        try:
            async with self._post(endpoint, path, data) as response:
                return await self._read(endpoint, response)
        except EtcdRefused as refusal:
            if not refusal.token_expired or self._settings.username is None:
                raise
        await self._log_in(endpoint)
        async with self._post(endpoint, path, data) as response:
            return await self._read(endpoint, response)

    async def _log_in(self, endpoint: str) -> None:
        self._token = None
        body = {"name": self._settings.username, "password": self._password}
        async with self._post(endpoint, "/v3/auth/authenticate", json.dumps(body).encode()) as response:
            answer = await self._read(endpoint, response)
        self._token = str(answer["token"])

    def _post(self, endpoint: str, path: str, data: bytes) -> _Posting:
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = self._token
        body = io.BytesIO(data) if len(data) > PLAIN_BYTES_MAX else data
        return _Posting(
            self._session.post(endpoint + path, data=body, headers=headers, allow_redirects=False)
        )

    async def _read(self, endpoint: str, response: aiohttp.ClientResponse) -> Json:
        data = await response.read()
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not (
            "header" in answer or "error" in answer or "result" in answer
        ):
            raise NotEtcd(f"answers, but not as etcd's JSON gateway does (HTTP {response.status})")
        if "error" in answer:
            raise _refusal(answer)
        self._check_cluster(endpoint, answer)
        return answer

    def _check_cluster(self, endpoint: str, answer: Json) -> None:
        header = answer.get("header") or answer["result"].get("header", {})
        etcd = header.get("cluster_id")
        if self._etcd is None:
            self._etcd = etcd
        elif etcd is not None and etcd != self._etcd:
            _log.error("an endpoint belongs to another etcd cluster", endpoint=endpoint)
            raise NotEtcd(f"belongs to another etcd cluster ({etcd}) than the others ({self._etcd})")


class _Posting:
    """``session.post`` that says ``NotEtcd`` where no TLS can be had: nothing was sent then."""

    def __init__(self, request: Any) -> None:
        self._request = request

    async def __aenter__(self) -> aiohttp.ClientResponse:
        try:
            response: aiohttp.ClientResponse = await self._request.__aenter__()
        except aiohttp.ClientConnectorCertificateError as error:
            raise NotEtcd(_explain(error.certificate_error)) from error
        except aiohttp.ClientConnectorSSLError as error:
            raise NotEtcd(_explain(error.os_error)) from error
        except aiohttp.ClientOSError as error:
            if isinstance(error.__cause__, ssl.SSLError):  # with TLS 1.3 a refusal comes after the handshake
                raise NotEtcd(_explain(error.__cause__)) from error
            raise
        return response

    async def __aexit__(self, *failure: Any) -> None:
        await self._request.__aexit__(*failure)


def _explain(error: BaseException) -> str:
    return explain_tls(error) if isinstance(error, ssl.SSLError) else str(error)


def _refusal(answer: Json) -> EtcdRefused | EtcdAway:
    error = answer["error"]
    fields = error if isinstance(error, dict) else answer
    code = int(fields.get("grpc_code") or fields.get("code") or 2)
    message = str(fields.get("message", error))
    if code in REFUSALS:
        return EtcdRefused(message, code)
    return EtcdAway(message, in_doubt=True)


async def _messages(response: aiohttp.ClientResponse) -> AsyncIterator[Json]:
    """One JSON value per line; etcd's gateway wraps each in ``result`` or ``error``."""
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise EtcdAway(f"a message of more than {LINE_BYTES_MAX} bytes", in_doubt=False)
        for line in filter(None, lines):
            message = json.loads(line)
            if "error" in message:
                raise _refusal(message)
            yield message["result"]


def _cause(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error) or "it hung up during the TLS handshake"
    return str(error) or type(error).__name__


def _context(settings: EtcdSettings) -> ssl.SSLContext | None:
    if not settings.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(
            str(one) for one in (settings.ca_file, settings.cert_file, settings.key_file) if one
        )
        raise ConfigError(f"cannot use {files}: {error}", hint="check [cluster.etcd]") from error
    return context


def _password(settings: EtcdSettings) -> str | None:
    if settings.password_file is None:
        return None
    try:
        return settings.password_file.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"cannot read {settings.password_file}: {error}", hint="check [cluster.etcd]"
        ) from error

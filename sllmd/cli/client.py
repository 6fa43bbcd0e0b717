"""HTTP to a daemon, over its Unix socket or TCP, with the standard library: nothing to wait for at start."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from sllmd.core.errors import (
    BusyError,
    CallerError,
    Conflict,
    ContextLengthExceeded,
    InsufficientCapacity,
    InvalidApiKey,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    SllmdError,
    WorkerLost,
)

DEFAULT_PORT = 8343
CONNECT_TIMEOUT_SECONDS = 5.0
ANSWER_TIMEOUT_SECONDS = 900.0
"""Longer than any queue time-out of a daemon: it, not we, knows when waiting is in vain."""


_TRY_AGAIN = frozenset({WorkerLost.code, *(kind.code for kind in BusyError.__subclasses__())})
"""Codes of errors that pass; within a stream they are all there is to go by."""
_LOAD_FAILED = frozenset({ModelLoadFailed.code, InsufficientCapacity.code})


class DaemonUnreachable(SllmdError):
    """Nobody answers at the daemon's address."""

    code = "daemon_unreachable"


class KeyRefused(CallerError):
    """The daemon knows who asks and does not let them do this."""

    code = "insufficient_scope"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a daemon listens: a Unix socket, or a host and port."""

    socket_path: str | None = None
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    tls: bool = False

    def __str__(self) -> str:
        if self.socket_path is not None:
            return f"unix:{self.socket_path}"
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """``unix:/path``, ``/path``, ``host:port``, ``host`` or a URL. Raises InvalidRequest."""
    if text.startswith(("unix:", "/")):
        path = text.removeprefix("unix:")
        return Address(socket_path=f"/{path.lstrip('/')}" if path.startswith("/") else path)
    url = urlsplit(text if "://" in text else f"http://{text}")
    try:
        port = url.port
    except ValueError:
        port = -1
    if url.scheme not in ("http", "https") or not url.hostname or port == -1:
        raise InvalidRequest(
            f"`{text}` is no address", hint="write unix:/path, host:port or http://host:port"
        )
    tls = url.scheme == "https"
    default = 443 if tls else DEFAULT_PORT
    return Address(host=url.hostname, port=default if port is None else port, tls=tls)


class Client:
    """Requests to one daemon. Every error of the daemon is raised as the SllmdError it stands for."""

    def __init__(self, address: Address, *, api_key: str | None = None) -> None:
        self.address = address
        self._headers = {"Accept": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def get(self, path: str) -> Any:
        """The JSON body of a GET."""
        return self._exchange("GET", path, None)[0]

    def post(self, path: str, body: Any = None) -> Any:
        """The JSON body of the answer to a POST."""
        return self._exchange("POST", path, {} if body is None else body)[0]

    def delete(self, path: str) -> Any:
        """The JSON body of the answer to a DELETE."""
        return self._exchange("DELETE", path, None)[0]

    def post_with_headers(self, path: str, body: Any) -> tuple[Any, Mapping[str, str]]:
        """Body and headers of the answer to a POST."""
        return self._exchange("POST", path, body)

    def stream(self, path: str, body: Any, *, headers_out: dict[str, str] | None = None) -> Iterator[Any]:
        """The JSON payloads of an answer made of server-sent events.

        ``headers_out`` receives the answer's headers before the first payload is yielded.
        """
        yield from self._streamed("POST", path, body, headers_out=headers_out)

    def follow(
        self, path: str, *, last_id: str | None = None, headers_out: dict[str, str] | None = None
    ) -> Iterator[Any]:
        """The payloads of a stream of events, going on after the one with ``last_id``."""
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        yield from self._streamed("GET", path, None, headers=headers, headers_out=headers_out)

    def _streamed(
        self,
        method: str,
        path: str,
        body: Any,
        *,
        headers: Mapping[str, str] = {},
        headers_out: dict[str, str] | None = None,
    ) -> Iterator[Any]:
        connection = self._connection()
        try:
            response = self._send(connection, method, path, body, headers)
            if headers_out is not None:
                headers_out.update(response.getheaders())
            try:
                yield from _payloads(response)
            except (OSError, http.client.HTTPException) as error:
                raise SllmdError(f"the daemon's answer broke off: {_reason(error)}") from None
        finally:
            connection.close()

    def answers(self) -> bool:
        """Whether a daemon is there."""
        try:
            self.get("/healthz")
        except SllmdError as error:
            return not isinstance(error, DaemonUnreachable)
        return True

    def _exchange(self, method: str, path: str, body: Any) -> tuple[Any, Mapping[str, str]]:
        connection = self._connection()
        try:
            response = self._send(connection, method, path, body)
            try:
                return _parsed(response.read()), dict(response.getheaders())
            except (OSError, http.client.HTTPException) as error:
                raise SllmdError(f"the daemon's answer broke off: {_reason(error)}") from None
        finally:
            connection.close()

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Any,
        more_headers: Mapping[str, str] = {},
    ) -> http.client.HTTPResponse:
        headers = {**self._headers, **more_headers}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        try:
            connection.connect()
            assert connection.sock is not None
            connection.sock.settimeout(ANSWER_TIMEOUT_SECONDS)
            connection.request(method, path, body=data, headers=headers)
            response = connection.getresponse()
        except TimeoutError:
            raise BusyError(
                f"the daemon at {self.address} did not answer in time", retry_after_seconds=1
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise DaemonUnreachable(
                f"no daemon at {self.address}: {_reason(error)}",
                hint="start one with `sllmd start`, or name another with --addr",
            ) from None
        if response.status >= 400:
            raise error_of(response.status, _parsed(response.read()), response.getheader("Retry-After"))
        return response

    def _connection(self) -> http.client.HTTPConnection:
        address = self.address
        if address.socket_path is not None:
            return _UnixConnection(address.socket_path)
        kind = http.client.HTTPSConnection if address.tls else http.client.HTTPConnection
        return kind(address.host, address.port, timeout=CONNECT_TIMEOUT_SECONDS)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CONNECT_TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def error_of(status: int, body: Any, retry_after: str | None) -> SllmdError:
    """The error that an answer of ``status``, or an event (500), with OpenAI's envelope stands for."""
    envelope = body.get("error") if isinstance(body, dict) else None
    told = envelope if isinstance(envelope, dict) else {}
    message = str(told.get("message") or f"the daemon answered with HTTP status {status}")
    code = told.get("code")
    if status == 401:
        return InvalidApiKey(message, hint="give a key with --api-key or SLLMD_API_KEY")
    if status == 403:
        return KeyRefused(message, code=code)
    if code == Conflict.code:
        return Conflict(message)
    if status == 404 or code == ModelNotFound.code:
        return ModelNotFound(message, code=code)
    if code in _TRY_AGAIN or (status in (429, 503) and code not in _LOAD_FAILED):
        told_seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
        hint = "try again later" if told_seconds is None else f"try again in {told_seconds:.0f} s"
        return BusyError(message, retry_after_seconds=told_seconds or 1.0, hint=hint)
    if status == 503:
        return ModelLoadFailed(message)
    if code == ContextLengthExceeded.code:
        return ContextLengthExceeded(message)
    if status < 500 or told.get("type") == "invalid_request_error":
        return InvalidRequest(message, code=code, param=told.get("param"))
    return SllmdError(message)


def segment(name: str) -> str:
    """``name`` as one segment of a path."""
    return quote(name, safe="")


def _payloads(response: http.client.HTTPResponse) -> Iterator[Any]:
    """The payloads of an event stream up to ``[DONE]``; comments and other fields are skipped."""
    for raw in response:
        line = raw.decode("utf-8").rstrip("\r\n")
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        payload = json.loads(data)
        if isinstance(payload, dict) and payload.keys() == {"error"}:  # a log line may have one among others
            raise error_of(500, payload, None)
        yield payload


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return raw.decode("utf-8", "replace")


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):  # whose numbers are not the system's
        unknown = error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
        return "that name is not known" if unknown else str(error.strerror)
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error) or type(error).__name__

"""Ranges of files from an http(s) server, received straight into the caller's memory."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from sllmd.core.errors import SourceChanged, SourceUnavailable
from sllmd.loader.disk import Advance
from sllmd.store.manifest import DataFile

_PIECE_BYTES = 256 * 1024
"""Received at a time: small enough that progress shows on a slow line."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WORTH_REPEATING = frozenset({408, 425, 429, 500, 502, 503, 504})


class Interrupted(Exception):
    """This attempt is lost and the next one may succeed."""


class RangeClient:
    """One keep-alive connection per calling thread and server."""

    def __init__(self, base_url: str, *, timeout_seconds: float, redirects_max: int) -> None:
        self._base = urlsplit(base_url)
        self._timeout_seconds = timeout_seconds
        self._redirects_max = redirects_max
        self._connections: dict[tuple[int, str], http.client.HTTPConnection] = {}
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._closing = False

    def receive(
        self,
        file: DataFile,
        offset: int,
        views: Sequence[memoryview],
        *,
        validator: str | None,
        pin_validator: Callable[[str], str],
        advance: Advance,
    ) -> None:
        """Fill ``views`` with the file's bytes from ``offset``; ``advance`` hears of each piece.

        Raises Interrupted when another attempt may help, SourceUnavailable when not, SourceChanged when
        the file is not the one that the manifest or an earlier range was read from.
        """
        length = sum(map(len, views))
        headers = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        if validator is not None and not validator.startswith("W/"):
            headers["If-Range"] = validator
        try:
            connection, response = self._ask(self._url(file), headers)
            try:
                _check_answer(response, file, offset, conditional="If-Range" in headers)
                _check_version(response, file, pin_validator)
                _read_body(response, views, advance)
            finally:
                # What was not read would be taken for the next answer.
                if not response.isclosed():
                    connection.close()
        except TimeoutError:
            raise Interrupted("no byte arrived in time") from None
        except (OSError, http.client.HTTPException) as error:
            self._forget_connections()
            raise Interrupted(str(error) or type(error).__name__) from None

    def _url(self, file: DataFile) -> str:
        path = f"{self._base.path.rstrip('/')}/{quote(file.path)}"
        return self._base._replace(path=path).geturl()

    def _ask(
        self, url: str, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        for _ in range(self._redirects_max + 1):
            parts = urlsplit(url)
            connection = self._connection(parts)
            target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
            connection.request("GET", target, headers=headers)
            if self._closing:
                # Set before this socket existed; from here on ``interrupt`` finds it.
                raise Interrupted("the load was given up")
            response = connection.getresponse()
            location = response.getheader("Location")
            if response.status not in _REDIRECTS or location is None:
                return connection, response
            connection.close()
            url = urljoin(url, location)
        raise SourceUnavailable(f"{url} redirects more than {self._redirects_max} times")

    def _connection(self, parts: SplitResult) -> http.client.HTTPConnection:
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise SourceUnavailable(f"`{parts.geturl()}` is no http(s) URL")
        key = (threading.get_ident(), f"{parts.scheme}://{parts.netloc}")
        with self._lock:
            if self._closing:
                raise Interrupted("the load was given up")
            if key not in self._connections:
                self._connections[key] = self._new_connection(parts.scheme, parts.hostname, parts.port)
            return self._connections[key]

    def _new_connection(self, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
        if scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=self._timeout_seconds)
        self._tls = self._tls or ssl.create_default_context()
        return http.client.HTTPSConnection(host, port, timeout=self._timeout_seconds, context=self._tls)

    def _forget_connections(self) -> None:
        with self._lock:
            mine = [key for key in self._connections if key[0] == threading.get_ident()]
            for key in mine:
                self._connections.pop(key).close()

    def interrupt(self) -> None:
        """Wake every thread that waits for bytes; no new connection is made."""
        with self._lock:
            self._closing = True
            sockets = [connection.sock for connection in self._connections.values()]
        for each in sockets:
            try:
                if each is not None:
                    each.shutdown(socket.SHUT_RDWR)
            except OSError:
                # Closed meanwhile, which is what is wanted.
                continue

    def close(self) -> None:
        """Once, when no thread receives."""
        with self._lock:
            self._closing = True
            for connection in self._connections.values():
                connection.close()


def _check_answer(
    response: http.client.HTTPResponse, file: DataFile, offset: int, *, conditional: bool
) -> None:
    if response.status in _WORTH_REPEATING:
        raise Interrupted(f"{response.status} {response.reason}")
    if (response.status == 200 and conditional) or response.status == 416:
        raise _changed(file, "it is another file now")
    if response.status == 200:
        raise SourceUnavailable(
            f"the server of {file.path} does not serve ranges", hint="use a server with Range support"
        )
    if response.status != 206:
        raise SourceUnavailable(f"{file.path}: the server answered {response.status} {response.reason}")
    found = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", ""))
    if found is None or int(found[1]) != offset:
        raise SourceUnavailable(f"{file.path}: the server answered with another range than it was asked for")
    if int(found[3]) != file.size_bytes:
        raise _changed(file, f"it has {found[3]} bytes instead of {file.size_bytes}")


def _check_version(
    response: http.client.HTTPResponse, file: DataFile, pin_validator: Callable[[str], str]
) -> None:
    seen = response.getheader("ETag") or response.getheader("Last-Modified")
    if seen is not None and pin_validator(seen) != seen:
        raise _changed(file, f"its version is {seen} now")


def _changed(file: DataFile, how: str) -> SourceChanged:
    return SourceChanged(
        f"{file.path} changed at its source while it was read: {how}", hint="import the model again"
    )


def _read_body(response: http.client.HTTPResponse, views: Sequence[memoryview], advance: Advance) -> None:
    for view in views:
        done = 0
        while done < len(view):
            count = response.readinto(view[done : done + _PIECE_BYTES])
            if not count:
                raise Interrupted("the server closed the connection early")
            done += count
            advance(count)

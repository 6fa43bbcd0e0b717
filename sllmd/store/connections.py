"""Connections to http(s) servers: one way to name a file and one way there, for importing and for loading.

Through the proxy that the environment names, if any: ``http_proxy``, ``https_proxy``, ``no_proxy``.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from sllmd.core.errors import SourceUnavailable
from sllmd.store.credentials import NO_USER_HINT, authorization, basic, names_user, shown_url

CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def file_url(base_url: str, file: str) -> str:
    """Where ``file`` is below ``base_url``, whose query (a token, a signature) stays at the end."""
    parts = urlsplit(base_url)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(file)}").geturl()


class Connections:
    """One keep-alive connection per calling thread and server."""

    def __init__(self, *, timeout_seconds: float, redirects_max: int) -> None:
        self._timeout_seconds = timeout_seconds
        self._redirects_max = redirects_max
        self._open: dict[tuple[int, str], http.client.HTTPConnection] = {}
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._closing = False

    def get(
        self, url: str, headers: dict[str, str]
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """The answer, redirects followed, and the connection that it comes over.

        Raises SourceUnavailable for what no other attempt would change, OSError and HTTPException.
        """
        for _ in range(self._redirects_max + 1):
            server = _split_without_user(url)
            proxy = _proxy_for(server)
            connection = self._connection(server, proxy)
            told = headers | authorization(server)
            if proxy is not None and server.scheme == "http":
                whole = server._replace(netloc=_host_and_port(server), fragment="").geturl()
                connection.request("GET", whole, headers=told | _proxy_authorization(proxy))
            else:
                query = f"?{server.query}" if server.query else ""
                connection.request("GET", f"{server.path or '/'}{query}", headers=told)
            if self._closing:
                # Set before this socket existed; from here on ``interrupt`` finds it.
                raise ConnectionAbortedError("the load was given up")
            response = connection.getresponse()
            location = response.getheader("Location")
            if response.status not in _REDIRECTS or location is None:
                return connection, response
            connection.close()
            url = urljoin(url, location)
        raise SourceUnavailable(f"{shown_url(url)} redirects more than {self._redirects_max} times")

    def _connection(self, server: SplitResult, proxy: SplitResult | None) -> http.client.HTTPConnection:
        key = (threading.get_ident(), f"{server.scheme}://{server.netloc}")
        with self._lock:
            if self._closing:
                raise ConnectionAbortedError("the load was given up")
            if key not in self._open:
                self._open[key] = self._new_connection(server, proxy)
            return self._open[key]

    def _new_connection(self, server: SplitResult, proxy: SplitResult | None) -> http.client.HTTPConnection:
        nearest = proxy or server
        assert nearest.hostname is not None
        if server.scheme == "http":
            return http.client.HTTPConnection(nearest.hostname, nearest.port, timeout=self._timeout_seconds)
        self._tls = self._tls or ssl.create_default_context()
        port = nearest.port or (80 if proxy else None)
        connection = http.client.HTTPSConnection(
            nearest.hostname, port, timeout=self._timeout_seconds, context=self._tls
        )
        if proxy is not None:
            assert server.hostname is not None
            connection.set_tunnel(server.hostname, server.port or 443, headers=_proxy_authorization(proxy))
        return connection

    def forget(self) -> None:
        """Close the calling thread's connections; they are in an unknown state, or not needed any more."""
        with self._lock:
            mine = [key for key in self._open if key[0] == threading.get_ident()]
            for key in mine:
                self._open.pop(key).close()

    def interrupt(self) -> None:
        """Wake every thread that waits for bytes; no new connection is made."""
        with self._lock:
            self._closing = True
            sockets = [connection.sock for connection in self._open.values()]
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
            for connection in self._open.values():
                connection.close()


def _split_without_user(url: str) -> SplitResult:
    if names_user(url):
        raise SourceUnavailable(f"the URL of {shown_url(url)} names a user", hint=NO_USER_HINT)
    return _split(url)


def _split(url: str) -> SplitResult:
    """What else is in a URL would be told by the exception of the library that it is given to."""
    plain = url.isascii() and url.isprintable() and " " not in url
    try:
        parts = urlsplit(url)
        if plain and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    except ValueError:  # for one, what stands for the port is none
        pass
    raise SourceUnavailable(f"`{shown_url(url)}` is no http(s) URL")


def _host_and_port(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


def _proxy_for(server: SplitResult) -> SplitResult | None:
    named = getproxies().get(server.scheme)
    if not named or proxy_bypass(_host_and_port(server)):
        return None
    scheme, _, rest = named.rpartition("://")
    if scheme not in ("", "http"):
        raise SourceUnavailable(
            f"a proxy that speaks {scheme} cannot be used",
            hint=f"write http://HOST:PORT into {server.scheme}_proxy",
        )
    return _split(f"http://{rest}")


def _proxy_authorization(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    return {"Proxy-Authorization": basic(unquote(proxy.username), unquote(proxy.password or ""))}

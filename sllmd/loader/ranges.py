"""Ranges of files from an http(s) server, received straight into the caller's memory."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Sequence

from sllmd.core.errors import SourceChanged, SourceUnavailable
from sllmd.loader.disk import Advance
from sllmd.store.connections import CONTENT_RANGE, Connections, file_url
from sllmd.store.credentials import WHO_ASKS, WHO_ASKS_HINT
from sllmd.store.manifest import DataFile

_PIECE_BYTES = 256 * 1024
"""Received at a time: small enough that progress shows on a slow line."""
_WORTH_REPEATING = frozenset({408, 425, 429, 500, 502, 503, 504})


class Interrupted(Exception):
    """This attempt is lost and the next one may succeed."""


class RangeClient:
    """Ranges of the files below one URL."""

    def __init__(self, base_url: str, *, timeout_seconds: float, redirects_max: int) -> None:
        self._base_url = base_url
        self._connections = Connections(timeout_seconds=timeout_seconds, redirects_max=redirects_max)

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
            connection, response = self._connections.get(file_url(self._base_url, file.path), headers)
            try:
                _check_answer(response, file, offset, conditional="If-Range" in headers)
                _check_version(response, file, pin_validator)
                _read_body(response, views, advance)
            finally:
                # What was not read would be taken for the next answer.
                if not response.isclosed():
                    connection.close()
        except (OSError, http.client.HTTPException) as error:
            self._connections.forget()
            late = isinstance(error, TimeoutError)
            reason = "no byte arrived in time" if late else str(error) or type(error).__name__
            raise Interrupted(reason) from None

    def interrupt(self) -> None:
        """Wake every thread that waits for bytes; no new connection is made."""
        self._connections.interrupt()

    def close(self) -> None:
        """Once, when no thread receives."""
        self._connections.close()


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
        raise SourceUnavailable(
            f"{file.path}: the server answered {response.status} {response.reason}",
            hint=WHO_ASKS_HINT if response.status in WHO_ASKS else None,
        )
    found = CONTENT_RANGE.fullmatch(response.getheader("Content-Range", ""))
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
        f"{file.path} changed at its source while it was read: {how}",
        hint="import the model again with --replace",
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

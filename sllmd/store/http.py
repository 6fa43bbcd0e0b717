"""Reading small pieces of files over http(s), strictly: a server that lies is an error, never bytes."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sllmd.core.errors import SourceChanged, SourceUnavailable
from sllmd.store.connections import CONTENT_RANGE, Connections, file_url
from sllmd.store.credentials import WHO_ASKS, WHO_ASKS_HINT, shown_url

_NOT_FOUND = frozenset({404, 410})
_REDIRECTS_MAX = 5
"""Of one answer; hubs answer with one to their storage."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file, the size of all of it, and what identifies its version."""

    data: bytes
    file_bytes: int
    validator: str
    """ETag, else Last-Modified, else empty."""


class HttpSource:
    """Files below one URL."""

    def __init__(self, base_url: str, timeout_seconds: float) -> None:
        self.base_url = base_url.rstrip("/")
        self._connections = Connections(timeout_seconds=timeout_seconds, redirects_max=_REDIRECTS_MAX)

    def url(self, file: str) -> str:
        """Where ``file`` is."""
        return file_url(self.base_url, file)

    def shown(self, file: str) -> str:
        """The same, for people to read."""
        return shown_url(self.url(file))

    def read_small(self, file: str, bytes_max: int) -> bytes | None:
        """All of a small file, or None when it is not there. Raises SourceUnavailable."""
        try:
            with self._open(file, {}) as response:
                announced = response.headers.get("Content-Length")
                data = response.read(bytes_max + 1)
        except FileNotFoundError:
            return None
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(file, error) from error
        if len(data) > bytes_max:
            raise SourceUnavailable(f"{self.shown(file)} is larger than {bytes_max} bytes")
        if announced is not None and announced != str(len(data)):
            raise SourceUnavailable(f"{self.shown(file)} announced {announced} bytes and sent {len(data)}")
        return data

    def read_piece(self, file: str, begin: int, end: int) -> Piece:
        """Bytes ``begin`` to ``end`` (exclusive; fewer at the file's end). Raises SourceUnavailable."""
        try:
            with self._open(file, {"Range": f"bytes={begin}-{end - 1}"}) as response:
                if response.status != http.client.PARTIAL_CONTENT:
                    raise SourceUnavailable(
                        f"{self.shown(file)} cannot be read in pieces: the server ignores Range requests",
                        hint="download the model and import the directory",
                    )
                matched = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                data = response.read(end - begin + 1)
                validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        except FileNotFoundError as error:
            raise SourceUnavailable(f"{self.shown(file)} is not there") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(file, error) from error
        if matched is None:
            raise SourceUnavailable(f"{self.shown(file)}: the answer to a Range request has no Content-Range")
        first, last, total = (int(text) for text in matched.groups())
        if first != begin or last != min(end, total) - 1 or len(data) != last - first + 1:
            raise SourceUnavailable(f"{self.shown(file)} sent other bytes than were asked for")
        return Piece(data, total, validator)

    def read_all_of(self, file: str, begin: int, end: int, like: Piece) -> bytes:
        """Bytes of the same version that ``like`` came from. Raises SourceChanged, SourceUnavailable."""
        piece = self.read_piece(file, begin, end)
        if (piece.file_bytes, piece.validator) != (like.file_bytes, like.validator):
            raise SourceChanged(f"{self.shown(file)} changed while it was read", hint="try again")
        return piece.data

    @contextmanager
    def _open(self, file: str, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        try:
            # Identity: a compressed answer would have another length and no ranges.
            _, response = self._connections.get(
                self.url(file), {"Accept-Encoding": "identity", "Connection": "close", **headers}
            )
            with response:
                if response.status in _NOT_FOUND:
                    raise FileNotFoundError(file)
                if response.status not in (http.client.OK, http.client.PARTIAL_CONTENT):
                    raise SourceUnavailable(
                        f"{self.shown(file)} answers {response.status} {response.reason}",
                        hint=WHO_ASKS_HINT if response.status in WHO_ASKS else None,
                    )
                yield response
        finally:
            self._connections.forget()

    def _unavailable(self, file: str, error: Exception) -> SourceUnavailable:
        reason = str(error) or type(error).__name__
        return SourceUnavailable(
            f"{self.shown(file)} cannot be read: {reason}", hint="check the address and the network"
        )

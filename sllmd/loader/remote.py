"""Chunks from an http(s) server, over one connection per thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from urllib.parse import urlsplit

from sllmd.core.errors import ChecksumMismatch, SourceUnavailable
from sllmd.loader.arriving import cut
from sllmd.loader.disk import Advance, digest_of, skip
from sllmd.loader.partial import Partial
from sllmd.loader.plan import Chunk
from sllmd.loader.ranges import Interrupted, RangeClient
from sllmd.loader.settings import LoaderSettings
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.credentials import shown_url


class HttpFetch:
    """See ``arriving.Fetch``."""

    def __init__(self, checkpoint: Checkpoint, settings: LoaderSettings, partial: Partial) -> None:
        assert checkpoint.remote_url is not None
        self._checkpoint = checkpoint
        self._settings = settings
        self._given_up = threading.Event()
        self._partial = partial
        self._client = RangeClient(
            checkpoint.remote_url,
            timeout_seconds=settings.stall_timeout_seconds,
            redirects_max=settings.http_redirects_max,
        )

    def fetch(self, chunk: Chunk, views: Sequence[memoryview], advance: Advance) -> str:
        """As in ``arriving.Fetch``."""
        exact = cut(views, chunk.size_bytes)
        received = 0
        reason = ""

        def count(arrived: int) -> None:
            nonlocal received
            received += arrived
            advance(arrived)

        for attempt in range(self._settings.http_attempts):
            self._pause(attempt)
            try:
                self._receive(chunk, received, exact, count)
            except Interrupted as error:
                reason = str(error)
                continue
            digest = digest_of(views, chunk.size_bytes)
            if chunk.digest in (None, digest):
                return digest
            reason = "checksum mismatch"
            count(-received)
        if reason == "checksum mismatch":
            raise ChecksumMismatch(file=chunk.file.path, chunk_index=chunk.index)
        raise SourceUnavailable(
            f"{shown_url(self._checkpoint.remote_url or '')}: {chunk.file.path} could not be read: {reason} "
            f"({self._settings.http_attempts} attempts)",
            hint="check the server and the network; what has arrived is kept for the next load",
        )

    def _receive(self, chunk: Chunk, received: int, exact: list[memoryview], count: Advance) -> None:
        file = chunk.file
        self._client.receive(
            file,
            chunk.offset_bytes + received,
            skip(exact, received),
            validator=self._partial.validator(file.path),
            pin_validator=lambda seen: self._partial.pin_validator(file.path, seen),
            advance=count,
        )

    def _pause(self, attempt: int) -> None:
        if attempt:
            self._given_up.wait(self._settings.http_retry_seconds * 2 ** (attempt - 1))
        if self._given_up.is_set():
            raise SourceUnavailable("the load was given up")

    def interrupt(self) -> None:
        """As in ``arriving.Fetch``."""
        self._given_up.set()
        self._client.interrupt()

    def close(self) -> None:
        """As in ``arriving.Fetch``."""
        self._client.close()


def server_of(url: str) -> str:
    """Names the server of ``url``: its connections share one queue. Raises SourceUnavailable."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SourceUnavailable(f"`{shown_url(url)}` is no http(s) URL")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

"""Remote -> DRAM, and to SSD on the way: a checkpoint on an http(s) server.

Each thread receives a chunk over its own connection into the slab, checks it, and writes it from there to
SSD; with several connections the line is busy while one of them writes. A load that was given up goes on
where it stopped, from what is on SSD.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

import structlog

from sllmd.core.errors import ChecksumMismatch, SllmdError, SourceChanged, SourceUnavailable
from sllmd.loader.disk import Advance, clear_padding, digest_of, skip
from sllmd.loader.partial import JOURNAL_NAME, Partial
from sllmd.loader.plan import Chunk
from sllmd.loader.ranges import Interrupted, RangeClient
from sllmd.loader.settings import LoaderSettings
from sllmd.loader.status import Stage
from sllmd.store.checkpoint import Checkpoint

_log = structlog.get_logger(__name__)

CompleteRemote = Callable[[Checkpoint, Mapping[str, Sequence[str]]], Checkpoint]


class RemoteSource:
    """A checkpoint on an http(s) server. Threads call ``read``; each chunk once."""

    stage: Stage = "remote→dram"

    def __init__(self, checkpoint: Checkpoint, settings: LoaderSettings, complete: CompleteRemote) -> None:
        assert checkpoint.remote_url is not None
        self.published: Checkpoint | None = None
        self._checkpoint = checkpoint
        self._settings = settings
        self._complete = complete
        self._given_up = threading.Event()
        self._partial = Partial(checkpoint)
        self._client = RangeClient(
            checkpoint.remote_url,
            timeout_seconds=settings.stall_timeout_seconds,
            redirects_max=settings.http_redirects_max,
        )

    def open(self) -> None:
        """Look for what an earlier load left on SSD."""
        self._partial.open()

    @property
    def direct_io(self) -> bool:
        """False once a file had to be written through the page cache."""
        return self._partial.direct_io

    @property
    def stored(self) -> bool:
        """Whether all bytes are on SSD, published."""
        return self.published is not None

    def read(self, chunk: Chunk, views: Sequence[memoryview], advance: Advance) -> None:
        """Fill ``views``, padded to the alignment, with the chunk, and write it to SSD.

        Raises SourceUnavailable, SourceChanged, or ChecksumMismatch when the server's bytes are not the
        ones that the manifest names.
        """
        if self._partial.read(chunk, views):
            advance(chunk.size_bytes)
            return
        try:
            digest = self._fetch(chunk, views, advance)
        except SourceChanged:
            self._partial.discard()
            raise
        clear_padding(views, chunk.size_bytes)
        self._partial.write(chunk, views, digest)

    def _fetch(self, chunk: Chunk, views: Sequence[memoryview], advance: Advance) -> str:
        exact = _cut(views, chunk.size_bytes)
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
            f"{self._checkpoint.remote_url}: {chunk.file.path} could not be read: {reason} "
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
        """Have reads in flight return soon."""
        self._given_up.set()
        self._client.interrupt()

    def publish(self) -> None:
        """Complete the copy on SSD. Where that fails it is logged, and the copy in DRAM serves."""
        if not self._partial.writable:
            return
        try:
            self.published = self._complete(self._checkpoint, self._partial.complete())
            (self.published.data_directory / JOURNAL_NAME).unlink(missing_ok=True)
        except (SllmdError, OSError) as error:
            _log.warning("copy on SSD not completed", model=self._checkpoint.name, reason=str(error))

    def close(self) -> None:
        """Once, when no thread reads any more."""
        self._client.close()
        self._partial.close()


def _cut(views: Sequence[memoryview], size_bytes: int) -> list[memoryview]:
    """The first ``size_bytes`` of ``views``."""
    exact = []
    for view in views:
        if size_bytes > 0:
            exact.append(view[:size_bytes])
        size_bytes -= len(view)
    return exact


def server_of(url: str) -> str:
    """Names the server of ``url``: its connections share one queue. Raises SourceUnavailable."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SourceUnavailable(f"`{url}` is no http(s) URL")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

"""Bytes that are not on this node yet: into DRAM, and to SSD on the way.

Each thread receives a chunk into the slab, checks it, and writes it from there to SSD; with several
connections the line is busy while one of them writes. A load that was given up goes on where it stopped,
from what is on SSD, wherever the rest comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog

from sllmd.core.errors import SllmdError, SourceChanged
from sllmd.loader.disk import Advance, clear_padding
from sllmd.loader.partial import JOURNAL_NAME, Partial
from sllmd.loader.plan import Chunk
from sllmd.loader.status import Stage
from sllmd.store.checkpoint import Checkpoint

_log = structlog.get_logger(__name__)

CompleteRemote = Callable[[Checkpoint, Mapping[str, Sequence[str]]], Checkpoint]


class Fetch(Protocol):
    """Where chunks come from; see ``remote`` and ``peer``. Threads call ``fetch``."""

    def fetch(self, chunk: Chunk, views: Sequence[memoryview], advance: Advance) -> str:
        """Fill ``views`` with the chunk; its digest, which is the manifest's if that names one.

        Raises SourceUnavailable, SourceChanged, ChecksumMismatch.
        """

    def interrupt(self) -> None:
        """Have fetches in flight return soon."""

    def close(self) -> None:
        """Once, when no thread fetches any more."""


class ArrivingSource:
    """A checkpoint on its way to this node. Threads call ``read``; each chunk once."""

    def __init__(
        self, checkpoint: Checkpoint, partial: Partial, fetch: Fetch, stage: Stage, complete: CompleteRemote
    ) -> None:
        self.stage: Stage = stage
        self.published: Checkpoint | None = None
        self._checkpoint = checkpoint
        self._partial = partial
        self._fetch = fetch
        self._complete = complete

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

        Raises SourceUnavailable, SourceChanged, or ChecksumMismatch when the bytes that came are not the
        ones that the manifest names.
        """
        if self._partial.read(chunk, views):
            advance(chunk.size_bytes)
            return
        try:
            digest = self._fetch.fetch(chunk, views, advance)
        except SourceChanged:
            self._partial.discard()
            raise
        clear_padding(views, chunk.size_bytes)
        self._partial.write(chunk, views, digest)

    def interrupt(self) -> None:
        """Have reads in flight return soon."""
        self._fetch.interrupt()

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
        self._fetch.close()
        self._partial.close()


def cut(views: Sequence[memoryview], size_bytes: int) -> list[memoryview]:
    """The first ``size_bytes`` of ``views``."""
    exact = []
    for view in views:
        if size_bytes > 0:
            exact.append(view[:size_bytes])
        size_bytes -= len(view)
    return exact

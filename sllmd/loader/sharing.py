"""What this node lets other nodes read: copies in DRAM, and else the files on SSD.

``Sharing.hold`` is the ``Provider`` of a ``wire.bulk.server.BulkServer``. A copy that is being read from is
leased, so that it is not evicted meanwhile.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from sllmd.core.errors import SourceUnavailable
from sllmd.core.ids import Digest
from sllmd.loader.tier import DramTier, Lease
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.manifest import DataFile, Manifest
from sllmd.wire.bulk.pipe import Piece, Span
from sllmd.wire.bulk.server import Holding

_LOOP_SECONDS = 5.0
"""For the event loop to answer; longer means that it is stuck, or stopping."""


class Sharing:
    """Belongs to the loop that it is made on; ``hold`` is called by other threads."""

    def __init__(self, tier: DramTier, find: Callable[[Digest], Checkpoint | None]) -> None:
        """``find``: the checkpoint of a digest, if this node knows it; called by other threads."""
        self._tier = tier
        self._find = find
        self._loop = asyncio.get_running_loop()

    def hold(self, digest: str) -> Holding:
        """Raises SourceUnavailable when not all bytes are here."""
        lent = asyncio.run_coroutine_threadsafe(self._lend(Digest(digest)), self._loop)
        try:
            lease = lent.result(_LOOP_SECONDS)
        except TimeoutError:
            lent.cancel()
            raise SourceUnavailable("this node is too busy to share checkpoints") from None
        if lease is not None:
            return InMemory(lease, self._loop)
        checkpoint = self._find(Digest(digest))
        if checkpoint is None or checkpoint.remote_url is not None:
            raise SourceUnavailable(f"checkpoint {digest} is not on this node")
        return OnDisk(checkpoint)

    async def _lend(self, digest: Digest) -> Lease | None:
        return self._tier.lend(digest)


class InMemory:
    """A copy in DRAM."""

    def __init__(self, lease: Lease, loop: asyncio.AbstractEventLoop) -> None:
        self._lease = lease
        self._loop = loop
        self._views: list[memoryview] = []

    def pieces(self, path: str, offset_bytes: int, size_bytes: int) -> Sequence[Piece]:
        """As in ``wire.bulk.server.Holding``."""
        self._release()
        partition, file = _data_file(self._lease.manifest, path, offset_bytes + size_bytes)
        self._views = self._lease.views(partition, file.base_bytes + offset_bytes, size_bytes)
        return self._views

    def _release(self) -> None:
        for view in self._views:
            view.release()
        self._views = []

    def close(self) -> None:
        """As in ``wire.bulk.server.Holding``."""
        self._release()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._lease.release)


class OnDisk:
    """Files, opened as they are asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._descriptors: dict[str, int] = {}

    def pieces(self, path: str, offset_bytes: int, size_bytes: int) -> Sequence[Piece]:
        """As in ``wire.bulk.server.Holding``."""
        _data_file(self._checkpoint.manifest, path, offset_bytes + size_bytes)
        if path not in self._descriptors:
            try:
                opened = os.open(self._checkpoint.data_directory / path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise SourceUnavailable(f"{path} cannot be read on this node: {error.strerror}") from None
            self._descriptors[path] = opened
        return [Span(self._descriptors[path], offset_bytes, size_bytes)]

    def close(self) -> None:
        """As in ``wire.bulk.server.Holding``."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()


def _data_file(manifest: Manifest, path: str, end_bytes: int) -> tuple[int, DataFile]:
    """The file and its partition; only what the manifest names can be read, as far as it goes."""
    for number, partition in enumerate(manifest.partitions):
        for file in partition.files:
            if file.path == path and end_bytes <= file.size_bytes:
                return number, file
    raise SourceUnavailable(f"the checkpoint has no {path} of {end_bytes} bytes")

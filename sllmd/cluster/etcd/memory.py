"""The newest catalogue that this node has read, on its disk: it starts from there while etcd is away.

One file, replaced whole, for its owner alone: it holds what the catalogue holds. It is a copy: one that is
missing, damaged, or of another etcd is as good as none.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import structlog

from sllmd.cluster.catalogue import restore, snapshot
from sllmd.cluster.codec import pack, unpack
from sllmd.cluster.etcd.log import NOTHING, Read
from sllmd.cluster.etcd.settings import EtcdSettings
from sllmd.core.errors import ProtocolError
from sllmd.store.durable import replace_file

VERSION = 1
PAUSE_SECONDS = 5.0
"""It is written at most so often; what is missing then etcd tells."""

_log = structlog.get_logger(__name__)


class Memory:
    """``run`` for ever in a task, ``wake`` after each change, ``write`` at the end."""

    def __init__(self, path: Path | None, cluster_id: str, settings: EtcdSettings) -> None:
        """``path`` None: nothing is kept."""
        self._path = path
        self._of = (cluster_id, settings.prefix, settings.incarnation)
        self._newest = self._written = NOTHING
        self._awake = asyncio.Event()
        self._writing = threading.Lock()
        """A write whose task was cancelled goes on in its thread."""

    def read(self) -> Read:
        """What was kept. Blocks."""
        if self._path is None:
            return NOTHING
        try:
            match unpack(self._path.read_bytes()):
                case [int(version), [*of], int(position), int(commands), int(size_bytes), bytes(data)] if (
                    version == VERSION and tuple(of) == self._of
                ):
                    self._newest = self._written = Read(restore(data), position, commands, size_bytes)
        except FileNotFoundError:
            return NOTHING
        except (OSError, ProtocolError) as error:
            _log.warning("what this node remembers of the catalogue cannot be read", reason=str(error))
        return self._written

    def wake(self, newest: Read) -> None:
        """This is the newest now."""
        self._newest = newest
        self._awake.set()

    async def run(self) -> None:
        """Write down what is new, now and then."""
        while True:
            await self._awake.wait()
            self._awake.clear()
            await self.write()
            await asyncio.sleep(PAUSE_SECONDS)

    async def write(self) -> None:
        """Write down the newest, unless it stands there. A disk that refuses does no more harm than that."""
        newest = self._newest
        if self._path is None or newest.position == self._written.position:
            return
        try:
            await asyncio.to_thread(self._write, self._path, newest)
        except OSError as error:
            _log.warning("the catalogue cannot be kept on disk", path=str(self._path), reason=str(error))
        else:
            self._written = newest

    def _write(self, path: Path, read: Read) -> None:
        facts = (read.position, read.commands_since_snapshot, read.bytes_since_snapshot)
        with self._writing:
            replace_file(path, pack([VERSION, self._of, *facts, snapshot(read.catalogue)]), mode=0o600)

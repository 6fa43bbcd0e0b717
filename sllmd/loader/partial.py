"""The half-written copy of a remote checkpoint on SSD, and the journal that lets a later load go on.

The journal is one line of JSON that says what is being copied, then a line for each chunk that was written:
file, index, digest. Nothing is synced while bytes pass: a chunk that is read back is compared with its line,
and one that did not survive a crash is fetched again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from collections.abc import Sequence
from typing import Any

import structlog

from sllmd.loader.disk import clear_padding, digest_of, skip
from sllmd.loader.files import DataFileHandle
from sllmd.loader.plan import Chunk
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.credentials import shown_url

_log = structlog.get_logger(__name__)

JOURNAL_NAME = ".journal"


class Partial:
    """Data files in the making. Threads call it; it never raises for a disk that cannot take bytes.

    Where nothing can be written (full, denied, another process writes the same copy) that is logged,
    ``writable`` becomes False, and the load goes on into DRAM alone.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._directory = checkpoint.data_directory
        self._lock = threading.Lock()
        self._files: dict[str, DataFileHandle] = {}
        self._digests: dict[tuple[str, int], str] = {}
        self._validators = {file: seen for file, seen in checkpoint.validators().items() if seen}
        self._journal = -1
        self.writable = True

    def open(self) -> None:
        """Find what an earlier load left, and claim it: no other process writes it while this is open."""
        try:
            self._open_journal()
        except OSError as error:
            self._give_up(error)

    def _open_journal(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / JOURNAL_NAME
        self._journal = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        text = path.read_text(errors="replace")
        lines = text.splitlines()
        if not lines or _parse(lines[0]) != self._heading():
            os.ftruncate(self._journal, 0)
            self._append(self._heading())
            return
        if not text.endswith("\n"):
            os.write(self._journal, b"\n")
        for line in lines[1:]:
            match _parse(line):
                case {"file": str(file), "validator": str(validator)}:
                    self._validators.setdefault(file, validator)
                case {"file": str(file), "chunk": int(index), "digest": str(digest)}:
                    self._digests[file, index] = digest

    def _heading(self) -> dict[str, Any]:
        manifest = self._checkpoint.manifest
        url = shown_url(self._checkpoint.remote_url or "")  # one that was signed anew is the same
        return {"digest": manifest.digest, "url": url, "chunk": manifest.chunk_bytes}

    def _note(self, entry: dict[str, Any]) -> None:
        try:
            if self.writable:
                self._append(entry)
        except OSError as error:
            self._give_up(error)

    def _append(self, entry: dict[str, Any]) -> None:
        os.write(self._journal, json.dumps(entry).encode() + b"\n")

    @property
    def direct_io(self) -> bool:
        """False once a file had to be written through the page cache."""
        return all(handle.direct for handle in list(self._files.values()))

    def validator(self, file: str) -> str | None:
        """What identified the remote file when it was registered, or when its first chunk was fetched."""
        return self._validators.get(file)

    def pin_validator(self, file: str, validator: str) -> str:
        """Keep ``validator`` unless there is one already; the one that counts."""
        with self._lock:
            known = self._validators.setdefault(file, validator)
        if known is validator:
            self._note({"file": file, "validator": validator})
        return known

    def read(self, chunk: Chunk, views: Sequence[memoryview]) -> bool:
        """Fill ``views`` with a chunk that an earlier load wrote; False: it is not there, or not whole."""
        digest = self._digests.get((chunk.file.path, chunk.index))
        if digest is None or not self.writable or digest != (chunk.digest or digest):
            return False
        try:
            handle = self._open(chunk.file.path)
            whole = handle.read(views, chunk.offset_bytes) >= chunk.size_bytes
        except OSError as error:
            _log.warning(
                "chunk on SSD unreadable, fetching it again", chunk=chunk.index, reason=error.strerror
            )
            return False
        clear_padding(views, chunk.size_bytes)
        return whole and digest_of(views, chunk.size_bytes) == digest

    def write(self, chunk: Chunk, views: Sequence[memoryview], digest: str) -> None:
        """Write a verified chunk, padding and all, and note it."""
        try:
            if self.writable:
                handle = self._open(chunk.file.path)
                done, wanted = 0, sum(map(len, views))
                while done < wanted:
                    done += handle.write(skip(views, done), chunk.offset_bytes + done)
        except OSError as error:
            self._give_up(error)
        self._digests[chunk.file.path, chunk.index] = digest
        self._note({"file": chunk.file.path, "chunk": chunk.index, "digest": digest})

    def _open(self, file: str) -> DataFileHandle:
        with self._lock:
            if not self.writable:
                raise OSError(errno.ESTALE, "the copy was given up")
            if file not in self._files:
                path = self._directory / file
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files[file] = DataFileHandle(path, os.O_RDWR | os.O_CREAT)
            return self._files[file]

    def _give_up(self, error: OSError) -> None:
        with self._lock:
            if not self.writable:
                return
            self.writable = False
        _log.warning(
            "not keeping a copy on SSD",
            model=self._checkpoint.name,
            directory=str(self._directory),
            reason=error.strerror,
        )
        if not isinstance(error, BlockingIOError):
            self.discard()

    def complete(self) -> dict[str, list[str]]:
        """Have all files whole on stable storage; their chunks' digests. Raises OSError.

        The journal stays until they are published: a load that finds it has nothing to fetch.
        """
        digests: dict[str, list[str]] = {}
        for partition in self._checkpoint.manifest.partitions:
            for file in partition.files:
                self._open(file.path).finish(file.size_bytes)
                count = -(-file.size_bytes // self._checkpoint.manifest.chunk_bytes)
                digests[file.path] = [self._digests[file.path, index] for index in range(count)]
        return digests

    def discard(self) -> None:
        """Remove what was written; what cannot be removed is logged."""
        self.writable = False
        names = [file.path for part in self._checkpoint.manifest.partitions for file in part.files]
        for name in [*names, JOURNAL_NAME]:
            try:
                (self._directory / name).unlink(missing_ok=True)
            except OSError as error:
                _log.warning("leftover", path=str(self._directory / name), reason=error.strerror)

    def close(self) -> None:
        """Once, when no thread uses it."""
        for handle in self._files.values():
            handle.close()
        if self._journal >= 0:
            os.close(self._journal)


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        # For one, the last line of a process that was killed while it wrote.
        return None

"""The catalogue on disk: one small JSON file per name, and the lock for changing them.

An entry is published by renaming it into ``names/``, which changes that directory's time, which is all
that a reader has to look at: a daemon asks for every request, and sees an import made by another process.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

import structlog

from sllmd.core.errors import InvalidRequest, StoreError
from sllmd.core.frozen import Frozen
from sllmd.core.ids import Digest, ModelName
from sllmd.store.durable import replace_file, store_errors, sync_directory
from sllmd.store.locks import open_lock

_log = structlog.get_logger(__name__)

ENTRY_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,119}")
_SLUG_CHARACTERS_MAX = 200
"""A file name has at most 255 bytes, and a digest and a suffix are added to this."""
_SETTLED_SECONDS = 0.1
"""A directory's time has the kernel's tick (up to 10 ms): a listing made this soon after a change may
have missed another change in the same tick, so it is made again."""


class Quarantined(Frozen):
    """Why an entry cannot be served."""

    file: str
    chunk_index: int
    moved_to: str


class Entry(Frozen):
    """What a name stands for."""

    version: int = ENTRY_VERSION
    name: ModelName
    aliases: tuple[str, ...] = ()
    kind: Literal["stored", "in-place", "remote"]
    digest: Digest
    architecture: str
    size_bytes: int
    imported_at: float
    """Unix seconds."""
    directory: str
    """Name of the directory in ``models/``: manifest and small files."""
    data_directory: str | None = None
    """Absolute path of the user's own directory, when served in place."""
    remote_url: str | None = None
    """Where the bytes came or come from; kept after they arrived, to fetch a bad copy again."""
    quarantined: Quarantined | None = None


def check_name(name: str) -> ModelName:
    """``name``, if it can be a model's or an alias. Raises InvalidRequest."""
    plain = _NAME.fullmatch(name) and ".." not in name and "//" not in name and not name.endswith("/")
    if not plain or len(slug(name)) > _SLUG_CHARACTERS_MAX:
        raise InvalidRequest(
            f"`{name}` cannot name a model",
            param="name",
            hint="use letters, digits and . _ - + : /, beginning with a letter or digit",
        )
    return ModelName(name)


def slug(name: str) -> str:
    """``name`` as a file name; names are unique, so are these."""
    return quote(name, safe="")


class Catalogue:
    """The entries under ``names/``. Reading is cheap and needs no lock; changing needs ``locked``."""

    def __init__(self, root: Path) -> None:
        self._names = root / "names"
        self._lock_file = root / "locks" / "catalogue"
        self._seen_ns = -1
        self._settled = False
        self._entries: dict[str, Entry] = {}
        self._faults: dict[str, str] = {}
        self._denied = False
        """Whether the system did not let an entry be read."""

    def entries(self) -> Mapping[str, Entry]:
        """All readable entries by name. Raises StoreError when the directory cannot be read."""
        try:
            changed_ns = self._names.stat().st_mtime_ns
        except FileNotFoundError:
            self._entries, self._faults, self._seen_ns = {}, {}, -1
            return self._entries
        if changed_ns != self._seen_ns or not self._settled:
            with store_errors("read the catalogue"):
                self._read_all()
            settled = time.time_ns() - changed_ns > _SETTLED_SECONDS * 1e9
            self._settled = settled and not self._denied  # a mode mended does not change the directory's time
            self._seen_ns = changed_ns
        return self._entries

    def fault(self, name: str) -> str | None:
        """Why the entry of ``name`` could not be read, if it could not."""
        return self._faults.get(name)

    @property
    def faults(self) -> Mapping[str, str]:
        """Why entries could not be read, by name."""
        return self._faults

    def names_and_aliases(self) -> list[str]:
        """Everything that can be asked for."""
        return [text for entry in self.entries().values() for text in (entry.name, *entry.aliases)]

    def find(self, name_or_alias: str) -> Entry | None:
        """The entry of a name, else of an alias."""
        entries = self.entries()
        if name_or_alias in entries:
            return entries[name_or_alias]
        return next((entry for entry in entries.values() if name_or_alias in entry.aliases), None)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the catalogue against other processes' changes. Raises StoreError."""
        with ExitStack() as opened:
            with store_errors("lock the catalogue"):
                fcntl.flock(opened.enter_context(open_lock(self._lock_file)), fcntl.LOCK_EX)
            self._settled = False
            yield

    def put(self, entry: Entry) -> None:
        """Publish an entry. Raises OSError."""
        replace_file(self._path(entry.name), entry.model_dump_json(indent=1).encode())
        self._settled = False

    def drop(self, name: str) -> None:
        """Remove an entry. Raises OSError."""
        self._path(name).unlink(missing_ok=True)
        sync_directory(self._names)
        self._settled = False

    def _path(self, name: str) -> Path:
        return self._names / f"{slug(name)}.json"

    def _read_all(self) -> None:
        entries: dict[str, Entry] = {}
        faults: dict[str, str] = {}
        self._denied = False
        for path in sorted(self._names.glob("[!.]*.json")):
            name = unquote(path.stem)
            try:
                entries[name] = _read_entry(path)
            except FileNotFoundError:
                continue  # removed since it was listed
            except OSError as error:
                self._denied = True
                faults[name] = f"{os.strerror(error.errno or 0)}: {path}"
            except (ValueError, RecursionError, StoreError) as error:
                faults[name] = str(error).splitlines()[0]
        for name in faults.keys() - self._faults.keys():
            _log.warning("catalogue entry cannot be read", model=name, reason=faults[name])
        self._entries, self._faults = entries, faults


def _read_entry(path: Path) -> Entry:
    raw = json.loads(path.read_bytes())
    version = raw.get("version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > ENTRY_VERSION:
        raise StoreError(f"{path} was written by a newer sllmd", hint="upgrade sllmd")
    return Entry.model_validate(raw)

"""How far an import is: told by whoever reads and writes, to whoever asked for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Literal

Stage = Literal["fetching", "converting", "hashing", "copying"]


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far an import is, per stage."""

    stage: Stage
    bytes_done: int
    bytes_total: int


OnProgress = Callable[[ImportProgress], None]


def at_stage(on_progress: OnProgress, name: Stage) -> Callable[[int, int], None]:
    """Told of bytes done and bytes in all of this stage."""
    return lambda done, total: on_progress(ImportProgress(name, done, total))


def untold(_done: int, _total: int) -> None:
    """The conversion of a tokenizer takes seconds and counts no bytes."""


class StageProgress:
    """Adds up what several threads did; the callback never runs twice at once."""

    def __init__(self, on_progress: OnProgress, name: Stage, total: int) -> None:
        self._tell = at_stage(on_progress, name)
        self._lock = Lock()
        self._done = 0
        self._total = total
        self._tell(0, total)

    def advance(self, count: int) -> None:
        """So many bytes more."""
        with self._lock:
            self._done += count
            self._tell(self._done, self._total)

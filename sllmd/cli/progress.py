"""Bytes on their way: how many, how fast, how long still; a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from sllmd.core.units import format_bytes, format_seconds

ByteProgress = Callable[[str, int, int], None]
"""Called with what is going on, bytes done and bytes in all (0: not known yet)."""


class _BytesColumn(ProgressColumn):
    """How many, how fast, how long still; nothing while a stage has counted no byte."""

    _parts = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())

    def render(self, task: Task) -> Text:
        if not task.completed:
            return Text()
        return Text(" ").join(Text.assemble(part.render(task)) for part in self._parts)


LINE_SECONDS = 5.0
"""Between two lines about one stage: often enough to see that it moves, seldom enough for a log."""


@contextmanager
def byte_bar(label: str, *, shown: bool, color: bool = True, lines: bool = False) -> Iterator[ByteProgress]:
    """A bar on standard error while the context is open; else ``lines``, if they are wanted."""
    if not shown:
        yield _Lines(label).update if lines else lambda _stage, _done, _total: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        _BytesColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr, no_color=not color), transient=True) as progress:
        task = progress.add_task(label, total=None)
        shown_bytes = 0

        def update(stage: str, done: int, total: int) -> None:
            nonlocal shown_bytes
            if done < shown_bytes:  # another stage began over the same bytes, at a speed of its own
                progress.reset(task)
            shown_bytes = done
            progress.update(
                task, description=f"{label} {stage}", completed=done, total=total if done else None
            )

        yield update


class _Lines:
    """A line when a stage begins, and every few seconds while it lasts."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._stage = ""
        self._began_seconds = self._told_seconds = 0.0

    def update(self, stage: str, done: int, total: int) -> None:
        now_seconds = time.monotonic()
        if stage != self._stage:
            self._stage, self._began_seconds = stage, now_seconds
        elif now_seconds - self._told_seconds < LINE_SECONDS:
            return
        self._told_seconds = now_seconds
        print(self._line(done, total, now_seconds - self._began_seconds), file=sys.stderr, flush=True)

    def _line(self, done: int, total: int, seconds: float) -> str:
        if not done or not seconds:
            return f"{self._label}: {self._stage}{f' {format_bytes(total)}' if total else ''}"
        speed = done / seconds
        text = f"{self._label}: {self._stage}, {format_bytes(done)} of {format_bytes(total)}"
        return f"{text}, {format_bytes(speed)}/s, {format_seconds((total - done) / speed)} left"

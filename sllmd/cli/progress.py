"""Bars for bytes on their way: how many, how fast, how long still."""

from __future__ import annotations

import sys
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

ByteProgress = Callable[[str, int, int], None]
"""Called with what is going on, bytes done and bytes in all (0: not known yet)."""


class _BytesColumn(ProgressColumn):
    """How many, how fast, how long still; nothing while a stage has counted no byte."""

    _parts = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())

    def render(self, task: Task) -> Text:
        if not task.completed:
            return Text()
        return Text(" ").join(Text.assemble(part.render(task)) for part in self._parts)


@contextmanager
def byte_bar(label: str, *, shown: bool) -> Iterator[ByteProgress]:
    """A bar on standard error while the context is open; with ``shown`` false, nothing at all."""
    if not shown:
        yield lambda _stage, _done, _total: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        _BytesColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
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

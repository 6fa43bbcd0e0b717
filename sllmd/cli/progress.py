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
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

ByteProgress = Callable[[str, int, int], None]
"""Called with what is going on, bytes done and bytes in all (0: not known yet)."""


@contextmanager
def byte_bar(label: str, *, shown: bool) -> Iterator[ByteProgress]:
    """A bar on standard error while the context is open; with ``shown`` false, nothing at all."""
    if not shown:
        yield lambda _stage, _done, _total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(label, total=None)
        shown_bytes = 0

        def update(stage: str, done: int, total: int) -> None:
            nonlocal shown_bytes
            if done < shown_bytes:  # another stage began over the same bytes, at a speed of its own
                progress.reset(task)
            shown_bytes = done
            progress.update(task, description=f"{label} {stage}", completed=done, total=total or None)

        yield update

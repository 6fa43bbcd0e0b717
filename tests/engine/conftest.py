import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sllmd.engine.settings import WorkerSettings
from sllmd.engine.supervisor import Supervisor
from tests.waiting import eventually


def children() -> set[int]:
    """Pids of this process's children."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(pid) for text in lists for pid in text.read_text().split()}


def alive(pid: int) -> bool:
    """Whether a process still holds anything; a zombie that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def descriptors_of(pid: int | str = "self") -> list[str]:
    """What a process's descriptors point at."""
    return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No descriptor and no child more than before."""
    descriptors, before = descriptors_of(), children()
    yield
    assert children() == before
    assert len(descriptors_of()) == len(descriptors)


@pytest.fixture
def worker_settings() -> WorkerSettings:
    """Overridden where a test needs other limits."""
    return WorkerSettings(engine="fake", refill_delay_seconds=0.05)


@pytest.fixture
async def supervisor(nothing_left: None, worker_settings: WorkerSettings) -> AsyncIterator[Supervisor]:
    """Running, with the fake engine in real processes; leaves nothing behind."""
    before: set[asyncio.Task[object] | None] = set(asyncio.all_tasks())
    running = Supervisor(worker_settings)
    await running.start()
    yield running
    pids = [process.pid for process in running.stats().processes]
    await running.close()
    assert not [pid for pid in pids if alive(pid)]
    before.add(asyncio.current_task())
    await eventually(lambda: asyncio.all_tasks() <= before, "tasks end")

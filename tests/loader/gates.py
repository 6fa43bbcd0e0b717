"""A source that does what the test says."""

from __future__ import annotations

import threading


class GateSource:
    """Each read waits for its turn, then fills the chunk with its number, or fails as told."""

    stage = "ssd→dram"
    direct_io = True
    stored = True
    published = None

    def __init__(self, *, fail_at: int | None = None, error: Exception | None = None) -> None:
        self.gate = threading.Semaphore(0)
        self.fail_at = fail_at
        self.error = error
        self.order: list[int] = []
        self.opened = False
        self.closed = 0
        self.publications = 0
        self.publishing = threading.Event()
        self.publish_gate = threading.Event()
        self.publish_gate.set()

    def open(self) -> None:
        self.opened = True

    def read(self, chunk, views, advance) -> None:
        self.order.append(chunk.index)
        self.gate.acquire()
        assert not self.closed
        if chunk.index == self.fail_at:
            raise self.error
        for view in views:
            view[:] = bytes([chunk.index + 1]) * len(view)
        advance(chunk.size_bytes)

    def interrupt(self) -> None:
        pass

    def publish(self) -> None:
        self.publications += 1
        self.publishing.set()
        self.publish_gate.wait()
        if self.fail_at == -1:
            raise self.error

    def close(self) -> None:
        self.closed += 1

"""The slabs of the DRAM tier: made on demand, pinned where allowed, recycled, returned to the system.

Belongs to the event loop's thread; only closing slabs happens elsewhere, since the system takes about
15 ms to take 64 MiB back.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import structlog

from sllmd.core.errors import InsufficientCapacity
from sllmd.core.units import format_bytes
from sllmd.loader.huge_pages import page_state
from sllmd.loader.slab import Slab
from sllmd.telemetry.memory import available_memory_bytes

_log = structlog.get_logger(__name__)


class Pool:
    """Free slabs, and how many more there may be.

    ``made`` counts the slabs that exist and are not being closed: those in use and the free ones.
    """

    def __init__(
        self, *, budget_bytes: int, slab_bytes: int, reserve_bytes: int, headroom_bytes: int, pin: bool
    ) -> None:
        self.slab_bytes = slab_bytes
        self.budget_slabs = budget_bytes // slab_bytes
        self.made = 0
        self._reserve_slabs = reserve_bytes // slab_bytes
        self._headroom_bytes = headroom_bytes
        self._free: list[Slab] = []
        self._pin = pin
        self._pin_refusal: str | None = None
        self._pinned = 0
        self._fresh = 0
        self.page_state = page_state()
        """``huge``, or ``small: `` and why."""
        if self.page_state != "huge":
            _log.warning("slabs have small pages: slower reads", reason=self.page_state)
        self._closer = ThreadPoolExecutor(1, thread_name_prefix="slab-closer")

    @property
    def free(self) -> int:
        """Slabs that exist and nobody uses."""
        return len(self._free)

    @property
    def pinned_bytes(self) -> int:
        """Memory that is locked."""
        return self._pinned * self.slab_bytes

    def room(self) -> int:
        """Slabs that ``take`` can give now: free ones, and what budget and machine allow on top."""
        return len(self._free) + max(0, min(self.budget_slabs - self.made, self._growth_slabs()))

    def _growth_slabs(self) -> int:
        untouched = self._fresh * self.slab_bytes
        return (available_memory_bytes() - untouched - self._headroom_bytes) // self.slab_bytes

    def take(self, count: int) -> list[Slab]:
        """``count`` slabs, at most ``room()``; used memory first, since it costs no first touch.

        Raises InsufficientCapacity when the system gives no more; then none is taken.
        """
        taken = [self._free.pop() for _ in range(min(count, len(self._free)))]
        try:
            while len(taken) < count:
                taken.append(self._make())
        except OSError as error:
            self._free += taken
            raise InsufficientCapacity(
                f"the system gives no more memory in slabs: {error.strerror}",
                hint="each slab is an open file: raise LimitNOFILE in the unit, or `ulimit -n`",
            ) from None
        return taken

    def _make(self) -> Slab:
        slab = Slab(self.slab_bytes)
        self.made += 1
        self._fresh += 1
        if self._pin and self._pin_refusal is None:
            self._try_pin(slab)
        return slab

    def _try_pin(self, slab: Slab) -> None:
        refused = slab.pin()
        if not refused:
            self._pinned += 1
            return
        self._pin_refusal = _explain_refusal(refused, self.budget_slabs * self.slab_bytes)
        _log.warning("slabs are not pinned", reason=self._pin_refusal, pinned_bytes=self.pinned_bytes)

    def touched(self, slabs: Iterable[Slab]) -> None:
        """These were filled: their memory counts as the machine's used memory from now on."""
        for slab in slabs:
            self._fresh -= slab.fresh
            slab.fresh = False

    def put(self, slabs: Iterable[Slab]) -> None:
        """Nobody uses these any more, in this process or another."""
        self._free.extend(slabs)

    def trim(self) -> None:
        """Return free slabs beyond the reserve to the system."""
        while len(self._free) > self._reserve_slabs:
            slab = self._free.pop(0)
            self.made -= 1
            self._fresh -= slab.fresh
            self._pinned -= slab.pinned
            self._closer.submit(slab.close).add_done_callback(_report)

    @property
    def pin_state(self) -> str:
        """``pinned``, ``off`` or ``unpinned: `` and why."""
        if not self._pin:
            return "off"
        return f"unpinned: {self._pin_refusal}" if self._pin_refusal else "pinned"

    def close(self) -> None:
        """Close what is free and wait for it. Blocks."""
        self._reserve_slabs = 0
        self.trim()
        self._closer.shutdown()


def _report(closing: Future[None]) -> None:
    error = closing.exception()
    if error is not None:
        _log.error("slab not closed, its memory is lost", reason=repr(error))


def _explain_refusal(code: int, budget_bytes: int) -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if code in (errno.ENOMEM, errno.EPERM, errno.EAGAIN) and soft != resource.RLIM_INFINITY:
        return (
            f"RLIMIT_MEMLOCK is {format_bytes(soft)}, need {format_bytes(budget_bytes)}; "
            "set LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`"
        )
    return f"mlock failed: {errno.errorcode.get(code, str(code))}"

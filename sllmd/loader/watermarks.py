"""How far each partition is filled without a gap, while its chunks arrive in any order. Pure."""

from __future__ import annotations

from sllmd.loader.plan import Chunk, Plan


class Watermarks:
    """Per partition, the address up to which every byte is there: what a device copy may follow."""

    def __init__(self, plan: Plan) -> None:
        self._due: list[list[Chunk]] = [[] for _ in plan.slabs]
        """Chunks not yet below the mark, the next one last."""
        for chunk in reversed(plan.chunks):
            self._due[chunk.partition].append(chunk)
        self._early: set[tuple[int, int]] = set()
        """Arrived above the mark: (partition, address)."""
        self._marks = [0] * len(plan.slabs)

    def arrived(self, chunk: Chunk) -> None:
        """One chunk is in memory."""
        self._early.add((chunk.partition, chunk.address_bytes))
        due = self._due[chunk.partition]
        while due and (chunk.partition, due[-1].address_bytes) in self._early:
            passed = due.pop()
            self._early.remove((passed.partition, passed.address_bytes))
            self._marks[passed.partition] = passed.address_bytes + passed.size_bytes

    def bytes_ready(self) -> tuple[int, ...]:
        """One mark per partition."""
        return tuple(self._marks)

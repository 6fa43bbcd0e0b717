"""A mark never passes a byte that is not there, and reaches the end when all are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sllmd.loader.plan import Chunk, Plan
from sllmd.loader.watermarks import Watermarks
from sllmd.store.manifest import DataFile

FILE = DataFile(path="part.bin", base_bytes=0, size_bytes=1)


def plan_of(counts: list[int]) -> Plan:
    chunks = [
        Chunk(FILE, partition, index, index * 4096, 4000, index * 4096, None)
        for partition, count in enumerate(counts)
        for index in range(count)
    ]
    return Plan(tuple(chunks), slabs=tuple(1 for _ in counts), size_bytes=1)


@given(st.data())
def test_marks_are_the_gapless_prefix_in_any_order(data: st.DataObject) -> None:
    plan = plan_of(data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=3)))
    watermarks = Watermarks(plan)
    there: set[tuple[int, int]] = set()
    for chunk in data.draw(st.permutations(plan.chunks)):
        watermarks.arrived(chunk)
        there.add((chunk.partition, chunk.index))
        for partition, mark in enumerate(watermarks.bytes_ready()):
            gapless = 0
            while (partition, gapless) in there:
                gapless += 1
            assert mark == (gapless * 4096 - 96 if gapless else 0)

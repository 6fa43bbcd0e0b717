import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sllmd.core.errors import ModelLoadFailed
from sllmd.core.memory import PartitionMemory
from sllmd.engine.memory import MappedPartition, Populator, map_partitions

PAGE = 4096
SLAB = 4 * PAGE


@pytest.fixture
def slabs() -> Iterator[list[int]]:
    """Five slabs, each of another letter."""
    descriptors = [os.memfd_create(f"slab {i}") for i in range(5)]
    for i, descriptor in enumerate(descriptors):
        os.pwrite(descriptor, bytes([65 + i]) * SLAB, 0)
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def read_only(descriptors: list[int]) -> tuple[int, ...]:
    return tuple(os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY) for descriptor in descriptors)


def mappings(name: str) -> int:
    return Path("/proc/self/maps").read_text().count(f"/memfd:{name}")


@pytest.mark.parametrize("span", [1, PAGE - 1, PAGE, SLAB - 1, SLAB, SLAB + 1, 3 * SLAB + 5000, 5 * SLAB])
def test_slabs_lie_one_behind_the_other(slabs: list[int], span: int) -> None:
    mapped = MappedPartition(PartitionMemory(span, SLAB, tuple(slabs)))
    expected = b"".join(bytes([65 + i]) * SLAB for i in range(5))[:span]
    assert bytes(mapped.buffer()) == expected
    assert mapped.address % PAGE == 0
    mapped.close()
    mapped.close()


def test_writes_go_to_private_copies_over_read_only_descriptors(slabs: list[int]) -> None:
    descriptors = read_only(slabs)
    mapped = MappedPartition(PartitionMemory(2 * SLAB, SLAB, descriptors))
    for descriptor in descriptors:
        os.close(descriptor)
    mapped.buffer()[SLAB] = 1
    assert mapped.buffer()[SLAB] == 1
    assert os.pread(slabs[1], 1, 0) == b"B"
    mapped.close()


@pytest.mark.parametrize("shared", [False, True])
def test_bytes_that_arrive_later_are_seen(slabs: list[int], shared: bool) -> None:
    descriptors = read_only(slabs)
    mapped = MappedPartition(PartitionMemory(2 * SLAB, SLAB, descriptors), shared=shared)
    mapped.populate(0, 2 * SLAB)
    os.pwrite(slabs[1], b"new", 100)
    assert bytes(mapped.buffer()[SLAB + 100 : SLAB + 103]) == b"new"
    mapped.close()
    for descriptor in descriptors:
        os.close(descriptor)


def test_populate_maps_pages_without_touching_them() -> None:
    descriptor = os.memfd_create("populated")
    os.pwrite(descriptor, b"x" * SLAB, 0)
    mapped = MappedPartition(PartitionMemory(SLAB, SLAB, (descriptor,)))

    def resident_kb() -> int:
        block = Path("/proc/self/smaps").read_text().split("/memfd:populated")[1]
        return int(block.split("Rss:")[1].split()[0])

    assert resident_kb() == 0
    mapped.populate(PAGE + 1, 2 * PAGE)
    assert resident_kb() >= 4
    mapped.populate(0, SLAB)
    assert resident_kb() == SLAB // 1024
    mapped.close()
    os.close(descriptor)


def test_the_populator_follows_the_watermark_and_finishes() -> None:
    descriptor = os.memfd_create("followed")
    os.pwrite(descriptor, b"x" * SLAB, 0)
    mapped = MappedPartition(PartitionMemory(SLAB, SLAB, (descriptor,)))

    def resident_bytes() -> int:
        block = Path("/proc/self/smaps").read_text().split("/memfd:followed")[1]
        return int(block.split("Rss:")[1].split()[0]) * 1024

    populator = Populator([mapped])
    assert resident_bytes() == 0
    populator.advance([PAGE])
    deadline = time.monotonic() + 60
    while resident_bytes() < PAGE:
        assert time.monotonic() < deadline
    populator.advance([0])
    populator.finish()
    populator._thread.join()
    assert resident_bytes() == SLAB
    mapped.close()
    os.close(descriptor)


@pytest.mark.parametrize(
    ("span", "slab", "count", "match"),
    [
        (3 * SLAB, SLAB, 2, "need 3 slabs"),
        (SLAB, 1000, 5, "not whole pages"),
        (SLAB, 2 * SLAB, 1, None),
        (SLAB + 1, 2 * SLAB, 1, "has 16384 bytes"),
    ],
)
def test_wrong_slabs_are_refused(
    slabs: list[int], span: int, slab: int, count: int, match: str | None
) -> None:
    memory = PartitionMemory(span, slab, tuple(slabs[:count]))
    if match is None:
        MappedPartition(memory).close()
        return
    with pytest.raises(ModelLoadFailed, match=match):
        MappedPartition(memory)


def test_nothing_stays_mapped(slabs: list[int]) -> None:
    good = PartitionMemory(SLAB, SLAB, tuple(slabs[:1]))
    bad = PartitionMemory(2 * SLAB, SLAB, tuple(slabs[:1]))
    with pytest.raises(ModelLoadFailed):
        map_partitions((good, bad))
    assert mappings("slab") == 0
    first, empty = map_partitions((good, PartitionMemory(0, SLAB, ())))
    assert mappings("slab") == 1
    assert bytes(empty.buffer()) == b""
    first.close()
    assert mappings("slab") == 0

"""Chunks and extents: everything once, in order, aligned."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmd.core.ids import Digest
from sllmd.core.units import KIB
from sllmd.loader.plan import Extent, Plan, extents, plan_load
from sllmd.store.manifest import (
    ALIGNMENT_BYTES,
    FORMAT_VERSION,
    DataFile,
    Manifest,
    Partition,
    Source,
    align_down,
    align_up,
)

CHUNK = 8 * KIB
SLAB = 12 * KIB


def manifest_of(*partitions: Partition, chunk_bytes: int = CHUNK) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        digest=Digest("d"),
        source=Source(kind="fake", location="", fingerprint=""),
        architecture="fake",
        config={},
        tensors=(),
        ties={},
        partitions=partitions,
        chunk_bytes=chunk_bytes,
    )


def packed(sizes: list[int]) -> Partition:
    files, base = [], 0
    for index, size in enumerate(sizes):
        files.append(DataFile(path=f"{index}", base_bytes=base, size_bytes=size))
        base = align_up(base + size)
    return Partition(span_bytes=base, files=tuple(files))


@given(st.lists(st.lists(st.integers(0, 5 * CHUNK), max_size=4), max_size=3))
def test_every_byte_of_every_file_is_in_one_chunk(partitions: list[list[int]]):
    manifest = manifest_of(*map(packed, partitions))
    plan = plan_load(manifest, SLAB)
    assert sum(chunk.size_bytes for chunk in plan.chunks) == plan.size_bytes == manifest.size_bytes
    for number, partition in enumerate(manifest.partitions):
        for file in partition.files:
            own = [c for c in plan.chunks if c.partition == number and c.file.path == file.path]
            position = 0
            for index, chunk in enumerate(own):
                assert (chunk.index, chunk.offset_bytes) == (index, position)
                assert chunk.address_bytes == file.base_bytes + position
                assert chunk.address_bytes % ALIGNMENT_BYTES == chunk.offset_bytes % ALIGNMENT_BYTES == 0
                assert 0 < chunk.size_bytes <= CHUNK
                position += chunk.size_bytes
            assert position == file.size_bytes
        assert (plan.slabs[number] - 1) * SLAB < partition.span_bytes <= plan.slabs[number] * SLAB


@given(st.integers(0, 40), st.integers(0, 5 * SLAB))
def test_extents_are_the_address_range(page: int, size: int):
    address = page * ALIGNMENT_BYTES
    pieces = list(extents(address, size, SLAB))
    covered = [piece.slab * SLAB + at for piece in pieces for at in (piece.start, piece.stop)]
    assert sum(piece.stop - piece.start for piece in pieces) == size
    assert all(0 <= piece.start < piece.stop <= SLAB for piece in pieces)
    if pieces:
        assert covered[0] == address
        assert covered[-1] == address + size
        assert covered[1:-1:2] == covered[2::2]


def test_an_extent_at_the_end_of_a_slab():
    assert list(extents(SLAB - 4096, 8192, SLAB)) == [Extent(0, SLAB - 4096, SLAB), Extent(1, 0, 4096)]


def test_partitions_fill_in_turns():
    plan = plan_load(manifest_of(packed([3 * CHUNK]), packed([CHUNK])), SLAB)
    assert [(chunk.partition, chunk.index) for chunk in plan.chunks] == [(0, 0), (1, 0), (0, 1), (0, 2)]


def test_checksums_go_with_their_chunks():
    file = DataFile(path="f", base_bytes=0, size_bytes=CHUNK + 1, chunk_digests=("a", "b"))
    plan = plan_load(manifest_of(Partition(span_bytes=3 * CHUNK, files=(file,))), SLAB)
    assert [chunk.digest for chunk in plan.chunks] == ["a", "b"]
    assert [chunk.size_bytes for chunk in plan.chunks] == [CHUNK, 1]


def test_no_partitions_need_nothing():
    assert plan_load(manifest_of(), SLAB) == Plan(chunks=(), slabs=(), size_bytes=0)


@pytest.mark.parametrize(
    ("count", "down", "up"),
    [(0, 0, 0), (1, 0, 4096), (4096, 4096, 4096), (4097, 4096, 8192)],
)
def test_alignment(count: int, down: int, up: int):
    assert (align_down(count), align_up(count)) == (down, up)

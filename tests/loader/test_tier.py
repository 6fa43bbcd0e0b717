"""The DRAM tier over real files: what waiters get, what the books say, what is given back."""

from __future__ import annotations

import pytest

from sllmd.loader.tier import DramTier
from tests.loader.conftest import CHUNK_BYTES, SLAB_BYTES, expected_memory, make_checkpoint, read_memory


def check_books(tier: DramTier) -> None:
    """Slabs of copies + draining + free = slabs that exist."""
    stats = tier.stats()
    assert stats.used_bytes == sum(copy.memory_bytes for copy in stats.copies)
    assert stats.used_bytes + stats.draining_bytes + stats.free_bytes == tier._pool.made * SLAB_BYTES
    assert tier._pool.made * SLAB_BYTES <= stats.budget_bytes


@pytest.mark.parametrize(
    "size",
    [1, 2, 511, 512, 513, 4095, 4096, 4097]
    + [CHUNK_BYTES * count + rest for count in (1, 2, 3) for rest in (-4097, -4096, -1, 0, 1)],
)
async def test_every_awkward_size_arrives(tmp_path, make_tier, size):
    checkpoint = make_checkpoint(tmp_path, "m", [[size]])
    tier = make_tier()
    lease = tier.acquire(checkpoint)
    report = await lease.loaded()
    assert [read_memory(memory) for memory in lease.memory] == expected_memory(checkpoint)
    assert report.size_bytes == size
    assert report.verified
    assert lease.progress().state == "loaded"
    check_books(tier)


async def test_many_files_and_partitions_lie_at_their_bases(tmp_path, make_tier):
    sizes = [[1, CHUNK_BYTES * 3 + 1, 0, 5000], [SLAB_BYTES], [0], [7, 7, 7]]
    checkpoint = make_checkpoint(tmp_path, "m", sizes)
    lease = make_tier().acquire(checkpoint)
    await lease.loaded()
    assert [read_memory(memory) for memory in lease.memory] == expected_memory(checkpoint)
    assert [len(memory.descriptors) for memory in lease.memory] == [2, 1, 0, 1]


async def test_an_empty_checkpoint_loads(tmp_path, make_tier):
    lease = make_tier().acquire(make_checkpoint(tmp_path, "m", [[0]]))
    assert (await lease.loaded()).size_bytes == 0

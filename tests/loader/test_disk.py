"""Reading files: checksums, quarantine, and filesystems without O_DIRECT."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import threading
import time
from pathlib import Path

import pytest
import xxhash

from sllmd.core.errors import ChecksumMismatch, MalformedCheckpoint, StoreError
from sllmd.loader.disk import digest_of, disk_of, fill, skip
from sllmd.loader.files import DataFileHandle
from sllmd.loader.plan import Chunk
from sllmd.store.manifest import DataFile
from tests.loader.conftest import (
    CHUNK_BYTES,
    SLAB_BYTES,
    chunk_digests,
    expected_memory,
    make_checkpoint,
    read_memory,
)
from tests.waiting import eventually

REFUSES_DIRECT = Path("/sys/kernel/btf/vmlinux")
"""A file of some megabytes on sysfs, which refuses O_DIRECT."""


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("position", [0, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 41])
async def test_a_flipped_bit_is_found_named_quarantined_and_never_served(tmp_path, make_tier, position):
    checkpoint = make_checkpoint(tmp_path, "m", [[10], [5, 3 * CHUNK_BYTES + 42]])
    flip(checkpoint.data_directory / "part-1-1.bin", position)
    calls = []

    def quarantine(*call: object) -> str:
        calls.append(call)
        return "/quarantine/m"

    tier = make_tier(quarantine=quarantine)
    leases = [tier.acquire(checkpoint) for _ in range(3)]
    results = await asyncio.gather(*(lease.loaded() for lease in leases), return_exceptions=True)
    chunk_index = position // CHUNK_BYTES
    for error in results:
        assert isinstance(error, ChecksumMismatch)
        assert (error.file, error.chunk_index) == ("part-1-1.bin", chunk_index)
        assert "moved to /quarantine/m" in str(error)
    assert calls == [(checkpoint, "part-1-1.bin", chunk_index)]
    assert tier.where(checkpoint) == "ssd"
    for lease in leases:
        lease.release()
    await eventually(lambda: tier.stats().used_bytes + tier.stats().draining_bytes == 0)


async def test_a_quarantine_that_fails_does_not_hide_the_mismatch(tmp_path, make_tier):
    def quarantine(*_: object) -> str:
        raise StoreError("disk full")

    checkpoint = make_checkpoint(tmp_path, "m", [[10]])
    flip(checkpoint.data_directory / "part-0-0.bin", 3)
    with pytest.raises(ChecksumMismatch, match=r"part-0-0.bin, chunk 0"):
        await make_tier(quarantine=quarantine).acquire(checkpoint).loaded()


async def test_verification_can_be_switched_off(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[10]])
    flip(checkpoint.data_directory / "part-0-0.bin", 3)
    assert not (await make_tier(verify="never").acquire(checkpoint).loaded()).verified


@pytest.mark.skipif(not REFUSES_DIRECT.exists(), reason="no kernel type information on sysfs")
async def test_a_filesystem_without_direct_io_is_read_and_reported(tmp_path, make_tier, capsys):
    with pytest.raises(OSError, match="Invalid argument"):
        os.open(REFUSES_DIRECT, os.O_RDONLY | os.O_DIRECT)
    content = await asyncio.to_thread(REFUSES_DIRECT.read_bytes)
    checkpoint = make_checkpoint(tmp_path, "m", [[0]])
    file = DataFile(
        path=REFUSES_DIRECT.name, base_bytes=0, size_bytes=len(content), chunk_digests=chunk_digests(content)
    )
    partition = checkpoint.manifest.partitions[0].model_copy(
        update={"span_bytes": len(content), "files": (file,)}
    )
    manifest = checkpoint.manifest.model_copy(update={"partitions": (partition,)})
    checkpoint = type(checkpoint)("m", manifest, tmp_path, REFUSES_DIRECT.parent)
    tier = make_tier(dram_budget=str(len(content) + 2 * SLAB_BYTES))
    lease = tier.acquire(checkpoint)
    report = await lease.loaded()
    assert not report.direct_io
    assert report.verified
    assert read_memory(lease.memory[0]) == content
    assert capsys.readouterr().out.count("no direct I/O here") == 1


async def test_a_disk_with_direct_io_leaves_no_page_cache(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[SLAB_BYTES]])
    lease = make_tier().acquire(checkpoint)
    if not (await lease.loaded()).direct_io:
        pytest.skip("the temporary directory has no direct I/O")
    assert read_memory(lease.memory[0]) == expected_memory(checkpoint)[0]


def test_a_refusal_in_mid_file_falls_back(tmp_path):
    """Memory that is not aligned is refused by read, not by open."""
    path = tmp_path / "f"
    path.write_bytes(bytes(range(256)) * 64)
    handle = DataFileHandle(path, os.O_RDONLY)
    memory = memoryview(bytearray(8192 + 1))
    odd = 1 if address_of(memory) % 512 != 511 else 0
    try:
        assert handle.read([memory[odd : odd + 8000]], 100) == 8000
        assert bytes(memory[odd : odd + 8000]) == path.read_bytes()[100:8100]
        assert not handle.direct
        assert handle.read([memory[:10]], 0) == 10
    finally:
        handle.close()


def address_of(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_what_passes_through_the_page_cache_does_not_stay_there(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x" * 65536)
    handle = DataFileHandle(path, os.O_RDONLY)
    descriptor = os.open(path, os.O_RDONLY)
    memory = [memoryview(bytearray(65536))]
    try:
        os.fsync(descriptor)
        try:
            os.preadv(descriptor, memory, 0, os.RWF_NOWAIT)
        except OSError as error:
            pytest.skip(f"this filesystem does not tell what is cached: {error}")
        handle._fall_back()
        handle.read(memory, 0)
        with pytest.raises(BlockingIOError):
            os.preadv(descriptor, memory, 0, os.RWF_NOWAIT)
    finally:
        os.close(descriptor)
        handle.close()


@pytest.mark.parametrize("direct", [True, False])
def test_a_file_that_shrinks_while_it_is_read_is_truncated(tmp_path, direct):
    path = tmp_path / "f"
    path.write_bytes(bytes(3 * 4096))
    memory = memoryview(mmap.mmap(-1, 4 * 4096))
    handle = DataFileHandle(path, os.O_RDONLY)
    handle.direct = direct
    file = DataFile(path="f", base_bytes=0, size_bytes=4 * 4096 - 7)
    chunk = Chunk(file, 0, 0, 0, file.size_bytes, 0, None)
    try:
        with pytest.raises(MalformedCheckpoint, match="truncated: 12288 bytes instead of 16377"):
            fill(handle, chunk, [memory])
    finally:
        handle.close()


def test_what_lies_behind_a_tail_is_cleared(tmp_path):
    """Through the page cache only the file's own bytes arrive."""
    path = tmp_path / "f"
    path.write_bytes(b"x" * 5000)
    memory = memoryview(mmap.mmap(-1, 8192))
    memory[:] = b"?" * 8192
    handle = DataFileHandle(path, os.O_RDONLY)
    handle._fall_back()
    file = DataFile(path="f", base_bytes=0, size_bytes=5000)
    try:
        fill(handle, Chunk(file, 0, 0, 0, 5000, 0, None), [memory[:4096], memory[4096:]])
        assert bytes(memory) == b"x" * 5000 + bytes(3192)
    finally:
        handle.close()


@pytest.mark.parametrize(
    ("lengths", "count", "rest"),
    [([5], 0, [5]), ([5], 2, [3]), ([5, 5], 5, [5]), ([5, 5], 7, [3]), ([5, 5], 10, []), ([], 0, [])],
)
def test_skip(lengths, count, rest):
    assert [len(view) for view in skip([memoryview(bytes(each)) for each in lengths], count)] == rest


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20])
def test_a_digest_over_pieces_is_the_digest_of_the_whole(size):
    content = bytes(range(20))
    views = [memoryview(content[:10]), memoryview(content[10:])]
    assert digest_of(views, size) == xxhash.xxh3_128(content[:size]).hexdigest()


def test_hashing_leaves_the_interpreter_to_others():
    """Chunks are hashed in reading threads: a hash that held the lock would stop the event loop."""
    content = memoryview(bytes(256 * 1024 * 1024))
    started = threading.Event()

    def hash_it() -> None:
        started.set()
        digest_of([content], len(content))

    thread = threading.Thread(target=hash_it)
    thread.start()
    started.wait()
    ticks = 0
    while thread.is_alive():
        time.sleep(0.0005)
        ticks += 1
    assert ticks >= 3


def test_files_of_one_disk_share_a_queue(tmp_path):
    (tmp_path / "a").mkdir()
    assert disk_of(tmp_path / "a") == disk_of(tmp_path)
    with pytest.raises(StoreError, match="No such file"):
        disk_of(tmp_path / "gone")

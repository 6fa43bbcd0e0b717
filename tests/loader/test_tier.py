"""The DRAM tier over real files: what waiters get, what the books say, what is given back."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import shutil
import threading

import pytest

from sllmd.core.errors import InsufficientCapacity, LoadError, MalformedCheckpoint, NodeDraining, StoreError
from sllmd.loader.pipeline import Cancelled
from sllmd.loader.tier import DramTier
from sllmd.store.manifest import Source
from tests.loader.conftest import (
    CHUNK_BYTES,
    SLAB_BYTES,
    expected_memory,
    make_checkpoint,
    open_descriptors,
    read_memory,
    small_settings,
)
from tests.waiting import eventually


def check_books(tier: DramTier) -> None:
    """Slabs of copies + draining + free = slabs that exist, and none is in two places."""
    stats = tier.stats()
    assert stats.used_bytes == sum(copy.memory_bytes for copy in stats.copies)
    assert stats.used_bytes + stats.draining_bytes + stats.free_bytes == tier._pool.made * SLAB_BYTES
    assert tier._pool.made * SLAB_BYTES <= stats.budget_bytes
    everywhere = [*tier._pool._free, *(slab for copy in tier._copies.values() for slab in copy.slabs)]
    everywhere += [slab for copy in tier._leaving for slab in copy.slabs]
    assert len(everywhere) == len(set(everywhere)) == tier._pool.made


async def load(tier: DramTier, checkpoint) -> None:
    """Into DRAM, leased by nobody."""
    lease = tier.acquire(checkpoint)
    await lease.loaded()
    lease.release()


# --- bytes ---


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


async def test_a_padding_never_shows_another_models_bytes(tmp_path, make_tier):
    tier = make_tier(dram_budget=str(SLAB_BYTES))
    await load(tier, make_checkpoint(tmp_path, "secret", [[SLAB_BYTES]]))
    lease = tier.acquire(make_checkpoint(tmp_path, "small", [[1]]))
    await lease.loaded()
    assert os.pread(lease.memory[0].descriptors[0], 4096, 0)[1:] == bytes(4095)


async def test_without_checksums_it_loads_and_says_so(tmp_path, make_tier):
    lease = make_tier().acquire(make_checkpoint(tmp_path, "m", [[5000]], digests=False))
    assert not (await lease.loaded()).verified


async def test_the_memory_is_there_from_the_start(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[3 * SLAB_BYTES]])
    lease = make_tier().acquire(checkpoint)
    assert lease.progress().state == "queued"
    mapped = [os.dup(descriptor) for descriptor in lease.memory[0].descriptors]
    await lease.loaded()
    assert b"".join(os.pread(each, SLAB_BYTES, 0) for each in mapped) == expected_memory(checkpoint)[0]
    for each in mapped:
        os.close(each)


# --- waiters ---


async def test_one_load_serves_many_waiters(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[4 * SLAB_BYTES]])
    tier = make_tier()
    leases = [tier.acquire(checkpoint) for _ in range(50)]
    (copy,) = tier.stats().copies
    assert (copy.loaded, copy.leases) == (False, 50)
    reports = await asyncio.gather(*(lease.loaded() for lease in leases))
    assert len({id(report) for report in reports}) == 1
    assert tier.stats().used_bytes == 4 * SLAB_BYTES
    for lease in leases:
        lease.release()
    check_books(tier)
    assert tier.where(checkpoint) == "dram"


async def test_a_waiter_that_leaves_takes_nobody_with_it(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[16 * SLAB_BYTES]])
    tier = make_tier(disk_bandwidth_max_bytes=16 * SLAB_BYTES * 10)
    impatient, patient = tier.acquire(checkpoint), tier.acquire(checkpoint)
    waiting = asyncio.create_task(impatient.loaded())
    await impatient.progress_changed()
    waiting.cancel()
    impatient.release()
    await patient.loaded()
    assert read_memory(patient.memory[0]) == expected_memory(checkpoint)[0]
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_load_that_nobody_waits_for_is_given_up_at_once(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[32 * SLAB_BYTES]])
    # At this pace the load would take ten minutes.
    tier = make_tier(disk_bandwidth_max_bytes=32 * SLAB_BYTES // 600)
    leases = [tier.acquire(checkpoint) for _ in range(3)]
    await eventually(lambda: leases[0].progress().state == "loading")
    for lease in leases:
        lease.release()
    await eventually(lambda: not tier.stats().draining_bytes, seconds=20)
    stats = tier.stats()
    assert (stats.used_bytes, stats.copies) == (0, ())
    assert stats.free_bytes == 4 * SLAB_BYTES
    check_books(tier)
    with pytest.raises(Cancelled):
        await leases[0].loaded()


async def test_after_giving_up_it_loads_again(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[8 * SLAB_BYTES]])
    tier = make_tier()
    tier.acquire(checkpoint).release()
    lease = tier.acquire(checkpoint)
    await lease.loaded()
    assert read_memory(lease.memory[0]) == expected_memory(checkpoint)[0]


async def test_releasing_twice_is_releasing_once(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[1]])
    tier = make_tier()
    first, second = tier.acquire(checkpoint), tier.acquire(checkpoint)
    await first.loaded()
    first.release()
    first.release()
    assert tier.stats().copies[0].leases == 1
    assert tier.evict(checkpoint.manifest.digest) == 0
    second.release()
    assert tier.evict(checkpoint.manifest.digest) == SLAB_BYTES


async def test_progress_is_told_as_it_happens_and_ends(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[8 * SLAB_BYTES]])
    lease = make_tier(disk_bandwidth_max_bytes=8 * SLAB_BYTES * 5, disk_threads=1).acquire(checkpoint)
    seen = [lease.progress()]
    while seen[-1].state != "loaded":
        seen.append(await lease.progress_changed())
    done = [progress.bytes_done for progress in seen]
    assert done == sorted(done)
    assert len(set(done)) > 3
    assert done[-1] == seen[-1].bytes_total == 8 * SLAB_BYTES
    assert seen[-1].eta_seconds == 0
    half = next(progress for progress in seen if progress.bytes_done > 4 * SLAB_BYTES)
    assert half.stage == "ssd→dram"
    assert half.eta_seconds == pytest.approx(0.1, abs=0.1)
    assert (await lease.progress_changed()).state == "loaded"


# --- room ---


async def test_the_least_recently_used_copy_makes_room(tmp_path, make_tier):
    tier = make_tier(dram_budget=str(4 * SLAB_BYTES))
    first, second, third = (make_checkpoint(tmp_path, name, [[2 * SLAB_BYTES]]) for name in "abc")
    await load(tier, first)
    await load(tier, second)
    await load(tier, first)
    await load(tier, third)
    assert [tier.where(each) for each in (first, second, third)] == ["dram", "ssd", "dram"]
    check_books(tier)


async def test_a_leased_copy_stays_and_the_error_names_it(tmp_path, make_tier):
    tier = make_tier(dram_budget=str(4 * SLAB_BYTES))
    held = tier.acquire(make_checkpoint(tmp_path, "held", [[3 * SLAB_BYTES]]))
    await held.loaded()
    other = make_checkpoint(tmp_path, "other", [[2 * SLAB_BYTES]])
    with pytest.raises(InsufficientCapacity, match=r"other needs 65.5 kB .* 32.8 kB .* in use: held"):
        tier.acquire(other)
    check_books(tier)
    held.release()
    await load(tier, other)


async def test_what_exceeds_the_budget_is_refused_and_nobody_is_evicted(tmp_path, make_tier):
    tier = make_tier(dram_budget=str(2 * SLAB_BYTES))
    small = make_checkpoint(tmp_path, "small", [[1]])
    await load(tier, small)
    with pytest.raises(InsufficientCapacity, match=r"the budget is 65.5 kB.*raise dram_budget"):
        tier.acquire(make_checkpoint(tmp_path, "big", [[3 * SLAB_BYTES]]))
    assert tier.where(small) == "dram"


async def test_partitions_are_rounded_to_slabs_one_by_one(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[1], [1], [1]])
    tier = make_tier()
    assert tier.slab_bytes_needed(checkpoint) == 3 * SLAB_BYTES
    tier.acquire(checkpoint)
    assert tier.stats().used_bytes == 3 * SLAB_BYTES


async def test_an_evicted_copys_memory_is_really_free(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[32 * SLAB_BYTES]])
    tier = make_tier(reserve_bytes=0)
    await load(tier, make_checkpoint(tmp_path, "other", [[1]]))
    descriptors = open_descriptors()
    await load(tier, checkpoint)
    assert tier.evict(checkpoint.manifest.digest) == 32 * SLAB_BYTES
    await eventually(lambda: open_descriptors() <= descriptors)
    assert tier.stats().free_bytes == 0
    assert tier.where(checkpoint) == "ssd"
    check_books(tier)


async def test_two_checkpoints_load_at_once(tmp_path, make_tier):
    tier = make_tier()
    checkpoints = [make_checkpoint(tmp_path, name, [[5 * SLAB_BYTES + 1], [77]]) for name in "ab"]
    leases = [tier.acquire(checkpoint) for checkpoint in checkpoints]
    await asyncio.gather(*(lease.loaded() for lease in leases))
    for lease, checkpoint in zip(leases, checkpoints, strict=True):
        assert [read_memory(memory) for memory in lease.memory] == expected_memory(checkpoint)


async def test_memory_of_a_given_up_load_is_reused_only_when_its_reads_are_over(tmp_path, make_tier):
    """Budget for one: each load takes over the slabs of the one that was just abandoned."""
    tier = make_tier(dram_budget=str(6 * SLAB_BYTES), disk_threads=8)
    first, second = (make_checkpoint(tmp_path, name, [[6 * SLAB_BYTES]]) for name in "ab")
    expected = expected_memory(second)
    dice = random.Random(7)
    for _ in range(60):
        abandoned = tier.acquire(first)
        if dice.random() < 0.7:
            await abandoned.progress_changed()
        abandoned.release()
        lease = tier.acquire(second)
        check_books(tier)
        await lease.loaded()
        assert [read_memory(memory) for memory in lease.memory] == expected
        lease.release()
        tier.evict(second.manifest.digest)
    check_books(tier)


async def test_a_crowd_of_waiters_keeps_the_books_straight(tmp_path, make_tier):
    tier = make_tier(dram_budget=str(7 * SLAB_BYTES), reserve_bytes=SLAB_BYTES)
    checkpoints = [make_checkpoint(tmp_path, f"m{size}", [[size * SLAB_BYTES - 5]]) for size in (1, 2, 3, 4)]
    expected = {each.name: expected_memory(each) for each in checkpoints}
    dice = random.Random(3)
    served = refused = 0

    async def client() -> None:
        nonlocal served, refused
        for _ in range(12):
            checkpoint = dice.choice(checkpoints)
            try:
                lease = tier.acquire(checkpoint)
            except InsufficientCapacity:
                refused += 1
                await asyncio.sleep(0)
                continue
            if dice.random() < 0.7:
                await lease.loaded()
                assert [read_memory(memory) for memory in lease.memory] == expected[checkpoint.name]
                served += 1
            check_books(tier)
            lease.release()
            check_books(tier)

    await asyncio.gather(*(client() for _ in range(12)))
    await eventually(
        lambda: all(copy.loaded for copy in tier.stats().copies) and not tier.stats().draining_bytes
    )
    check_books(tier)
    assert served > 50


async def test_a_source_that_cannot_be_made_costs_no_slab(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[SLAB_BYTES]], remote_url="http://127.0.0.1:1")
    liar = Source(kind="http", location="", fingerprint="no JSON")
    manifest = checkpoint.manifest.model_copy(update={"source": liar})
    tier = make_tier()
    with pytest.raises(ValueError, match="Expecting value"):
        tier.acquire(dataclasses.replace(checkpoint, manifest=manifest))
    check_books(tier)


async def test_a_copy_whose_directory_vanished_makes_room_all_the_same(tmp_path, make_tier):
    tier = make_tier(dram_budget=str(SLAB_BYTES))
    gone = make_checkpoint(tmp_path, "gone", [[SLAB_BYTES]])
    await load(tier, gone)
    shutil.rmtree(gone.data_directory)
    await load(tier, make_checkpoint(tmp_path, "other", [[SLAB_BYTES]]))
    check_books(tier)


async def test_estimates_start_no_threads(tmp_path, make_tier):
    tier = make_tier()
    before = threading.active_count()
    for number in range(5):
        url = f"http://127.0.0.{number + 1}:1"
        checkpoint = make_checkpoint(tmp_path, f"m{number}", [[1000]], remote_url=url)
        assert tier.estimate_seconds(checkpoint) == 1000 / small_settings().remote_bandwidth_guess_bytes
    assert threading.active_count() == before


# --- bad files ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: os.truncate(path, 3 * CHUNK_BYTES), "truncated: 49152 bytes instead of 163840"),
        (lambda path: os.truncate(path, 0), "truncated: 0 bytes"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "has grown: 163841 bytes"),
    ],
    ids=["cut", "empty", "longer"],
)
async def test_a_file_of_another_size_is_refused(tmp_path, make_tier, change, message):
    checkpoint = make_checkpoint(tmp_path, "m", [[10 * CHUNK_BYTES]])
    change(checkpoint.data_directory / "part-0-0.bin")
    tier = make_tier()
    lease = tier.acquire(checkpoint)
    with pytest.raises(MalformedCheckpoint, match=message):
        await lease.loaded()
    assert lease.progress().state == "failed"
    lease.release()
    await eventually(lambda: tier.stats().used_bytes == 0 and tier.stats().draining_bytes == 0)
    check_books(tier)


async def test_a_file_that_vanished_is_named(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[100, 200]])
    (checkpoint.data_directory / "part-0-1.bin").unlink()
    lease = make_tier().acquire(checkpoint)
    with pytest.raises(StoreError, match=r"part-0-1.bin of m is gone"):
        await lease.loaded()


async def test_a_directory_in_place_of_a_file_is_named(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[4096]])
    (checkpoint.data_directory / "part-0-0.bin").unlink()
    (checkpoint.data_directory / "part-0-0.bin").mkdir()
    lease = make_tier().acquire(checkpoint)
    with pytest.raises((StoreError, MalformedCheckpoint), match=r"part-0-0.bin"):
        await lease.loaded()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_file_that_must_not_be_read_is_named(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[100]])
    (checkpoint.data_directory / "part-0-0.bin").chmod(0)
    with pytest.raises(StoreError, match=r"part-0-0.bin of m: Permission denied"):
        await make_tier().acquire(checkpoint).loaded()


async def test_a_file_that_cannot_be_opened_is_named(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[100]])
    path = checkpoint.data_directory / "part-0-0.bin"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(StoreError, match=r"part-0-0.bin of m: Too many levels of symbolic links"):
        await make_tier().acquire(checkpoint).loaded()


async def test_a_directory_that_vanished_is_named(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[100]])
    (checkpoint.data_directory / "part-0-0.bin").unlink()
    checkpoint.data_directory.rmdir()
    tier = make_tier()
    with pytest.raises(StoreError, match="/m: No such file"):
        tier.acquire(checkpoint)
    check_books(tier)


async def test_an_error_reaches_every_waiter_and_the_next_load_starts_anew(tmp_path, make_tier):
    checkpoint = make_checkpoint(tmp_path, "m", [[10 * CHUNK_BYTES]])
    path = checkpoint.data_directory / "part-0-0.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    tier = make_tier()
    leases = [tier.acquire(checkpoint) for _ in range(5)]
    results = await asyncio.gather(*(lease.loaded() for lease in leases), return_exceptions=True)
    assert [type(result) for result in results] == [MalformedCheckpoint] * 5

    path.write_bytes(content)
    again = tier.acquire(checkpoint)
    await again.loaded()
    # The failed one's memory is theirs until they give it back.
    assert tier.stats().used_bytes == 10 * SLAB_BYTES
    for lease in leases:
        lease.release()
    assert tier.stats().used_bytes == 5 * SLAB_BYTES
    assert read_memory(again.memory[0]) == content
    check_books(tier)


# --- the end ---


async def test_closing_fails_waiters_and_returns_everything(tmp_path, make_tier):
    descriptors = open_descriptors()
    tier = make_tier(disk_bandwidth_max_bytes=1000)
    await load(tier, make_checkpoint(tmp_path, "done", [[10]]))
    checkpoint = make_checkpoint(tmp_path, "m", [[20 * SLAB_BYTES]])
    lease = tier.acquire(checkpoint)
    waiting = asyncio.create_task(lease.loaded())
    await tier.close()
    with pytest.raises(LoadError, match="stopping"):
        await waiting
    with pytest.raises(NodeDraining):
        tier.acquire(checkpoint)
    assert open_descriptors() == descriptors

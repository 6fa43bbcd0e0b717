"""Memory changes hands only when no read goes into it: reads that hang are held by gates here."""

from __future__ import annotations

import asyncio
import time

import pytest

from sllmd.core.errors import InsufficientCapacity, LoadStalled
from sllmd.loader.tier import DramTier
from tests.loader.conftest import SLAB_BYTES, make_checkpoint, refuse, small_settings
from tests.loader.gates import GateSource
from tests.waiting import eventually


class GatedTier(DramTier):
    """Every load reads through a gate; ``sources`` has them by model name, the newest last."""

    def __init__(self, **changes: object) -> None:
        super().__init__(small_settings(**changes), quarantine=refuse, complete_remote=refuse)
        self.sources: dict[str, list[GateSource]] = {}

    def _source(self, checkpoint) -> GateSource:
        source = GateSource()
        self.sources.setdefault(checkpoint.name, []).append(source)
        return source


@pytest.fixture
async def tier():
    tier = GatedTier(dram_budget=str(4 * SLAB_BYTES), disk_threads=10, stall_timeout_seconds=60)
    yield tier
    for source in (each for sources in tier.sources.values() for each in sources):
        source.gate.release(100)
        source.publish_gate.set()
    await tier.close()


@pytest.fixture
def first(tmp_path):
    return make_checkpoint(tmp_path, "first", [[4 * SLAB_BYTES]])


@pytest.fixture
def second(tmp_path):
    return make_checkpoint(tmp_path, "second", [[4 * SLAB_BYTES]])


@pytest.fixture
def third(tmp_path):
    return make_checkpoint(tmp_path, "third", [[SLAB_BYTES]])


async def begin(tier: GatedTier, checkpoint):
    """A load with all its reads in flight, and threads to spare."""
    lease = tier.acquire(checkpoint)
    source = tier.sources[checkpoint.name][-1]
    await eventually(lambda: len(source.order) == 8)
    return lease, source


async def test_the_next_load_waits_for_reads_of_the_abandoned_one(tier, first, second):
    lease, old = await begin(tier, first)
    lease.release()
    assert tier.stats().draining_bytes == 4 * SLAB_BYTES
    lease = tier.acquire(second)
    assert tier.stats().draining_bytes == 0
    (new,) = tier.sources["second"]
    new.gate.release(100)
    await asyncio.sleep(0.05)
    assert (old.closed, new.order) == (0, [])
    assert lease.progress().state == "queued"
    old.gate.release(8)
    await lease.loaded()
    assert len(new.order) == 8


async def test_it_is_handed_on_through_loads_that_never_began(tier, first, second, third):
    lease, old = await begin(tier, first)
    lease.release()
    tier.acquire(second).release()
    lease = tier.acquire(third)
    (new,) = tier.sources["third"]
    new.gate.release(100)
    await asyncio.sleep(0.05)
    assert new.order == []
    old.gate.release(8)
    await lease.loaded()
    await eventually(lambda: not tier.stats().draining_bytes)
    assert tier.stats().used_bytes == SLAB_BYTES
    assert tier.stats().free_bytes == 3 * SLAB_BYTES


async def test_files_of_a_remote_checkpoint_are_written_by_one_load_at_a_time(tmp_path, tier):
    """There is memory enough for both; it is the half-written copy on SSD that they would share."""
    checkpoint = make_checkpoint(tmp_path, "m", [[2 * SLAB_BYTES]], remote_url="http://gated")
    lease, old = tier.acquire(checkpoint), tier.sources["m"][0]
    await eventually(lambda: len(old.order) == 4)
    lease.release()
    lease = tier.acquire(checkpoint)
    new = tier.sources["m"][1]
    new.gate.release(100)
    assert (old.closed, new.opened) == (0, False)
    old.gate.release(4)
    await lease.loaded()
    assert (old.closed, new.opened) == (1, True)


async def test_memory_that_a_dead_disk_holds_is_a_stall_for_who_needs_it(tmp_path, first, second):
    tier = GatedTier(dram_budget=str(4 * SLAB_BYTES), disk_threads=10, stall_timeout_seconds=0.1)
    lease, old = await begin(tier, first)
    with pytest.raises(LoadStalled):
        await lease.loaded()
    lease.release()
    lease = tier.acquire(second)
    with pytest.raises(LoadStalled):
        await lease.loaded()
    lease.release()
    assert tier.stats().used_bytes == 0
    assert tier.stats().draining_bytes == 4 * SLAB_BYTES
    old.gate.release(100)
    await eventually(lambda: not tier.stats().draining_bytes)
    assert tier.stats().free_bytes == 4 * SLAB_BYTES
    await tier.close()


async def test_a_copy_that_is_being_published_has_all_its_bytes(tier, first, third):
    """Nobody waits for it, but it is too late to give it up; its memory may go, since nothing is read."""
    lease = tier.acquire(first)
    (source,) = tier.sources["first"]
    source.publish_gate.clear()
    source.gate.release(100)
    await eventually(source.publishing.is_set)
    lease.release()
    assert tier.stats().used_bytes == 4 * SLAB_BYTES
    tier.sources["third"] = []
    lease = tier.acquire(third)
    tier.sources["third"][0].gate.release(1)
    source.publish_gate.set()
    await eventually(lambda: source.closed == 1)
    assert tier.where(first) == "ssd"
    assert tier.stats().used_bytes == SLAB_BYTES


async def test_a_failed_loads_memory_stays_while_it_is_mapped(tier, first, third):
    lease, old = await begin(tier, first)
    old.fail_at, old.error = old.order[0], InsufficientCapacity("any error")
    old.gate.release(100)
    with pytest.raises(InsufficientCapacity, match="any error"):
        await lease.loaded()
    await eventually(lambda: old.closed == 1)
    with pytest.raises(InsufficientCapacity, match=r"32.8 kB of it are missing; in use: first "):
        tier.acquire(third)
    lease.release()
    assert tier.stats().used_bytes == 0
    tier.acquire(third)


async def test_closing_leaves_behind_what_a_dead_disk_holds(first):
    tier = GatedTier(disk_threads=10, close_timeout_seconds=0.05)
    _, old = await begin(tier, first)
    await tier.close()
    assert old.closed == 0
    old.gate.release(100)
    await eventually(lambda: old.closed == 1)


@pytest.mark.slow
async def test_closing_waits_for_all_dead_disks_at_once(tmp_path):
    tier = GatedTier(dram_budget=str(16 * SLAB_BYTES), http_connections=8, close_timeout_seconds=5)
    sources = []
    for number in range(4):
        url = f"http://127.0.0.{number + 1}"
        checkpoint = make_checkpoint(tmp_path, f"m{number}", [[4 * SLAB_BYTES]], remote_url=url)
        _, source = await begin(tier, checkpoint)
        sources.append(source)
    began_at = time.monotonic()
    await tier.close()
    assert 5 <= time.monotonic() - began_at < 15, "four of them would take 20 s"
    for source in sources:
        source.gate.release(100)
    await eventually(lambda: all(source.closed for source in sources))


async def test_estimates_count_what_is_queued(tmp_path, tier, first, third):
    bandwidth = small_settings().disk_bandwidth_guess_bytes
    assert tier.estimate_seconds(first) == pytest.approx(4 * SLAB_BYTES / bandwidth)
    _, source = await begin(tier, first)
    assert tier.estimate_seconds(third) == pytest.approx(5 * SLAB_BYTES / bandwidth)
    source.gate.release(100)
    await eventually(lambda: tier.where(first) == "dram")
    assert tier.estimate_seconds(first) == 0
    rates = tier.stats().bytes_per_second
    (rate,) = rates.values()
    assert tier.estimate_seconds(third) == pytest.approx(SLAB_BYTES / rate)

"""Slabs come from the pool and go back to the system; pinning degrades loudly."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from sllmd.core.errors import InsufficientCapacity
from sllmd.core.units import KIB, MIB
from sllmd.loader.pool import Pool
from sllmd.telemetry.memory import available_memory_bytes
from tests.loader.conftest import open_descriptors, status_bytes

SLAB = 64 * KIB


@pytest.fixture
def make_pool():
    pools = []

    def make(**changes) -> Pool:
        values = {"budget_bytes": 10 * SLAB, "slab_bytes": SLAB, "reserve_bytes": 2 * SLAB}
        pools.append(Pool(**{**values, "headroom_bytes": 0, "pin": False, **changes}))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def test_the_budget_is_whole_slabs(make_pool):
    assert make_pool(budget_bytes=3 * SLAB - 1).room() == 2


def test_a_slab_that_came_back_is_used_again_first(make_pool):
    pool = make_pool()
    slabs = pool.take(2)
    pool.put(slabs)
    assert pool.room() == 10
    assert set(pool.take(3)) >= set(slabs)
    assert (pool.made, pool.free, pool.room()) == (3, 0, 7)
    pool.put(slabs)


def test_free_slabs_beyond_the_reserve_are_closed(make_pool):
    pool = make_pool()
    descriptors = open_descriptors()
    slabs = pool.take(5)
    pool.put(slabs)
    assert (pool.made, pool.free) == (5, 5)
    pool.trim()
    assert (pool.made, pool.free) == (2, 2)
    pool.close()
    assert pool.made == 0
    assert open_descriptors() == descriptors


def test_a_slab_that_cannot_be_made_costs_none(make_pool):
    pool = make_pool(budget_bytes=1000 * SLAB)
    pool.put(pool.take(2))
    descriptors = open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 4, hard))
    try:
        with pytest.raises(InsufficientCapacity, match=r"Too many open files .*LimitNOFILE"):
            pool.take(1000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert pool.made == pool.free < 1000
    pool.trim()
    pool.close()
    assert open_descriptors() == descriptors - 4


def test_the_machine_limits_growth_too(make_pool):
    pool = make_pool(headroom_bytes=available_memory_bytes() * 2)
    assert pool.room() == 0


def test_memory_that_was_promised_and_not_touched_yet_counts(make_pool):
    slab_bytes = available_memory_bytes() // 3 // MIB * MIB
    pool = make_pool(budget_bytes=100 * slab_bytes, slab_bytes=slab_bytes)
    assert pool.room() in (2, 3)
    taken = pool.take(2)
    assert pool.room() <= 1
    pool.put(taken)


def test_pinned_where_allowed(make_pool):
    pool = make_pool(pin=True)
    slabs = pool.take(1)
    if pool.pin_state != "pinned":
        pytest.skip(f"this machine does not let us pin 64 kB: {pool.pin_state}")
    assert pool.pinned_bytes == SLAB
    assert status_bytes("VmLck") >= SLAB
    pool.put(slabs)
    pool.close()
    assert pool.pinned_bytes == 0


def test_off_is_off(make_pool):
    pool = make_pool(pin=False)
    pool.put(pool.take(1))
    assert (pool.pin_state, pool.pinned_bytes) == ("off", 0)


_UNPRIVILEGED = """
import ctypes, json, os, resource, sys
from sllmd.loader.pool import Pool
resource.setrlimit(resource.RLIMIT_MEMLOCK, (128 * 1024, 128 * 1024))
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
pool = Pool(budget_bytes=10 << 20, slab_bytes=64 * 1024, reserve_bytes=0, headroom_bytes=0, pin=True)
slabs = pool.take(5)
with slabs[4].view(0, 4) as view:
    view[:] = b"used"
served = os.pread(slabs[4].descriptor, 4, 0).decode()
print(json.dumps([pool.pin_state, pool.pinned_bytes, served]), file=sys.stderr)
pool.put(slabs)
pool.close()
"""


def test_a_small_memlock_limit_degrades_loudly():
    child = subprocess.run(
        [sys.executable, "-c", _UNPRIVILEGED], capture_output=True, text=True, check=True, timeout=30
    )
    state, pinned_bytes, served = json.loads(child.stderr)
    assert state == (
        "unpinned: RLIMIT_MEMLOCK is 131.1 kB, need 10.5 MB; "
        "set LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`"
    )
    assert pinned_bytes <= 128 * KIB
    assert served == "used"
    assert child.stdout.count("slabs are not pinned") == 1

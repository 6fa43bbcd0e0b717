"""Transfers and lanes, with a source that does what the test says."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from sllmd.core.errors import LoadError, LoadStalled, StoreError
from sllmd.loader.load import Load
from sllmd.loader.pipeline import Lane, Transfer
from sllmd.loader.plan import Plan, plan_load
from sllmd.loader.slab import Slab
from tests.loader.conftest import CHUNK_BYTES, SLAB_BYTES, make_checkpoint, small_settings
from tests.loader.gates import GateSource
from tests.waiting import eventually


@pytest.fixture
def plan(tmp_path) -> Plan:
    return plan_load(make_checkpoint(tmp_path, "m", [[8 * CHUNK_BYTES]]).manifest, SLAB_BYTES)


@pytest.fixture
def slabs():
    slabs = [Slab(SLAB_BYTES) for _ in range(4)]
    yield slabs
    for slab in slabs:
        # Raises where a view was left behind.
        slab.close()


@pytest.fixture
def make_lane():
    lanes = []

    def make(threads: int) -> Lane:
        lanes.append(Lane("test", threads=threads, bandwidth_max_bytes=0))
        return lanes[-1]

    yield make
    for lane in lanes:
        lane.stop()
    assert all(lane.join(time.monotonic() + 60) for lane in lanes)


def submit(lane: Lane, plan: Plan, slabs: list[Slab], source: GateSource) -> tuple[Transfer, threading.Event]:
    ended = threading.Event()
    transfer = Transfer(plan, [slabs], source, on_change=lambda: None, on_end=ended.set)
    lane.submit(transfer)
    return transfer, ended


def test_chunks_are_taken_in_order_and_all_arrive(plan, slabs, make_lane):
    source = GateSource()
    transfer, ended = submit(make_lane(1), plan, slabs, source)
    source.gate.release(8)
    assert ended.wait(60)
    assert transfer.error is None
    assert source.order == list(range(8))
    assert transfer.bytes_done == transfer.bytes_total
    assert (source.closed, source.publications) == (1, 1)
    for index in range(8):
        with slabs[index // 2].view(index % 2 * CHUNK_BYTES, (index % 2 + 1) * CHUNK_BYTES) as view:
            assert set(bytes(view)) == {index + 1}


def test_the_first_load_comes_first_and_the_second_takes_what_is_left(plan, slabs, make_lane):
    lane = make_lane(3)
    first, second = GateSource(), GateSource()
    _, first_ended = submit(lane, plan, slabs, first)
    _, second_ended = submit(lane, plan, slabs, second)
    first.gate.release(6)
    while len(first.order) < 8 or not second.order:
        second_ended.wait(0.001)
    assert not first_ended.is_set()
    assert second.order == [0]
    first.gate.release(2)
    assert first_ended.wait(60)
    second.gate.release(8)
    assert second_ended.wait(60)


def test_an_error_stops_the_load_when_its_reads_are_back(plan, slabs, make_lane):
    source = GateSource(fail_at=0, error=StoreError("broken"))
    transfer, ended = submit(make_lane(2), plan, slabs, source)
    while len(source.order) < 2:
        ended.wait(0.001)
    # The other thread may take a chunk or two more before this one fails.
    source.gate.release(8)
    assert ended.wait(60)
    assert isinstance(transfer.error, StoreError)
    assert transfer.error.__traceback__ is None
    assert (source.closed, source.publications) == (1, 0)


def test_a_crash_in_a_thread_is_that_loads_error_and_the_lane_goes_on(plan, slabs, make_lane):
    lane = make_lane(1)
    broken, sound = GateSource(fail_at=0, error=ZeroDivisionError("oops")), GateSource()
    transfer, ended = submit(lane, plan, slabs, broken)
    broken.gate.release()
    assert ended.wait(60)
    assert type(transfer.error) is LoadError
    assert "ZeroDivisionError: oops" in str(transfer.error)
    transfer, ended = submit(lane, plan, slabs, sound)
    sound.gate.release(8)
    assert ended.wait(60)
    assert transfer.error is None


@pytest.mark.parametrize("error", [StoreError("full"), OSError("full")])
def test_a_copy_that_cannot_be_completed_is_the_loads_error(plan, slabs, make_lane, error):
    source = GateSource(fail_at=-1, error=error)
    transfer, ended = submit(make_lane(2), plan, slabs, source)
    source.gate.release(8)
    assert ended.wait(60)
    assert isinstance(transfer.error, LoadError | StoreError)
    assert "full" in str(transfer.error)


def test_giving_up_before_the_first_chunk_ends_it_at_once(plan, slabs, make_lane):
    lane = make_lane(1)
    busy = GateSource()
    _, busy_ended = submit(lane, plan, slabs, busy)
    waiting = GateSource()
    transfer, ended = submit(lane, plan, slabs, waiting)
    assert transfer.abort(LoadError("enough"))
    assert ended.is_set()
    assert not transfer.abort(LoadError("again"))
    busy.gate.release(8)
    assert busy_ended.wait(60)
    assert (waiting.order, waiting.closed, waiting.publications) == ([], 1, 0)


def test_it_is_too_late_to_give_up_when_all_bytes_are_there(plan, slabs, make_lane):
    source = GateSource()
    source.publish_gate.clear()
    transfer, ended = submit(make_lane(2), plan, slabs, source)
    source.gate.release(8)
    assert source.publishing.wait(60)
    assert not transfer.abort(LoadError("too late"))
    source.publish_gate.set()
    assert ended.wait(60)
    assert transfer.error is None


def test_the_gauge_sees_busy_time_only(plan, slabs, make_lane):
    lane, busy_seconds = make_lane(2), 0.0
    for _ in range(2):
        began_at = time.monotonic()
        source = GateSource()
        _, ended = submit(lane, plan, slabs, source)
        source.gate.release(8)
        assert ended.wait(60)
        busy_seconds += time.monotonic() - began_at
        time.sleep(0.5)
    assert lane.queued_bytes() == 0
    # Two loads of a millisecond each, and half a second between them.
    assert lane.gauge.bytes_per_second > 8 * CHUNK_BYTES / busy_seconds


# --- the event loop's side ---


def start_load(plan, slabs, source, lane, **changes) -> tuple[Load, asyncio.Event]:
    ended = asyncio.Event()
    load = Load(
        plan,
        [slabs],
        source,
        lane,
        small_settings(**changes),
        verified=False,
        on_over=lambda: None,
        on_end=ended.set,
    )
    load.watch()
    load.start()
    return load, ended


async def test_a_disk_that_does_not_answer_is_a_stall(plan, slabs, make_lane):
    source = GateSource()
    load, ended = start_load(plan, slabs, source, make_lane(2), stall_timeout_seconds=0.1)
    source.gate.release(1)
    with pytest.raises(LoadStalled, match=r"no byte arrived for 100 ms, 16\.4 kB of 131\.1 kB are there"):
        await load.result()
    # The reads may still write: the memory is not free before they are back.
    assert not ended.is_set()
    assert source.closed == 0
    source.gate.release(2)
    await asyncio.wait_for(ended.wait(), 60)
    assert source.closed == 1


async def test_slow_progress_is_no_stall(plan, slabs, make_lane):
    source = GateSource()
    load, _ = start_load(plan, slabs, source, make_lane(1), stall_timeout_seconds=60)
    for taken in range(1, 9):
        await eventually(lambda taken=taken: len(source.order) == taken)
        load.transfer.began_at -= 50
        load.transfer.moved_at -= 50
        load._check_stall()
        source.gate.release()
    assert (await load.result()).seconds > 400


async def test_waiting_behind_a_load_that_moves_is_no_stall(plan, slabs, make_lane):
    lane = make_lane(1)
    ahead, behind = GateSource(), GateSource()
    first, _ = start_load(plan, slabs, ahead, lane, stall_timeout_seconds=60)
    second, _ = start_load(plan, slabs, behind, lane, stall_timeout_seconds=60)
    behind.gate.release(8)
    for taken in range(1, 9):
        await eventually(lambda taken=taken: len(ahead.order) == taken)
        second.transfer.moved_at -= 50
        lane.moved_at -= 50 if taken > 1 else 0  # until then no chunk has moved
        second._check_stall()
        ahead.gate.release()
    await first.result()
    await second.result()


async def test_waiting_behind_a_dead_disk_is_a_stall_too(plan, slabs, make_lane):
    lane = make_lane(1)
    ahead, behind = GateSource(), GateSource()
    first, _ = start_load(plan, slabs, ahead, lane, stall_timeout_seconds=0.1)
    second, second_ended = start_load(plan, slabs, behind, lane, stall_timeout_seconds=0.1)
    for load in (first, second):
        with pytest.raises(LoadStalled):
            await load.result()
    await asyncio.wait_for(second_ended.wait(), 60)
    ahead.gate.release(8)


async def test_progress_events_are_bounded(plan, slabs, make_lane):
    source = GateSource()
    source.gate.release(8)
    load, _ = start_load(plan, slabs, source, make_lane(4), progress_interval_seconds=10.0)
    events = 0
    while (await load.changed()).state != "loaded":
        events += 1
    assert events <= 1


async def test_publishing_shows_in_progress(plan, slabs, make_lane):
    source = GateSource()
    source.publish_gate.clear()
    source.gate.release(8)
    load, _ = start_load(plan, slabs, source, make_lane(2))
    await eventually(lambda: load.progress().state == "publishing")
    assert not load.abort(LoadError("too late"))
    source.publish_gate.set()
    await load.result()

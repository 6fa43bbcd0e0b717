"""How many cores there are."""

import os

import pytest

from sllmd.telemetry.cores import physical_cores, quota_cores, usable_cores


def test_this_process_may_use_some_of_this_machines_cores():
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_affinity_counts():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_threads_of_one_core_count_once():
    assert physical_cores(["0,4", "1,5", "0,4", "1,5"]) == 2


@pytest.mark.parametrize(("said", "cores"), [("max 100000\n", None), ("max", None), ("150000 100000", 1.5)])
def test_a_control_groups_quota(said: str, cores: float | None):
    assert quota_cores(said) == cores

"""Admission as a table: each case is a picture of the node and what must be decided."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmd.core.ids import Digest, ModelName, ReplicaId
from sllmd.roles.admission import (
    Decision,
    DeviceView,
    Evict,
    Need,
    NodeView,
    Refuse,
    ReplicaState,
    ReplicaView,
    Start,
    Use,
    Wait,
    decide,
)

NOW = 1000.0
ASLEEP = ReplicaState.ASLEEP


def need(name: str = "b", *, device_bytes: tuple[int, ...] = (10,), dram_bytes: int = 10) -> Need:
    return Need(ModelName(name), Digest(name), device_bytes, dram_bytes)


def replica(name: str, **changes: object) -> ReplicaView:
    idle = ReplicaView(
        replica_id=ReplicaId(f"{name}-1"),
        model=ModelName(name),
        digest=Digest(name),
        devices=("cpu:0",),
        device_bytes=(10,),
        dram_bytes=10,
        state=ReplicaState.SERVING,
        running=0,
        rows_max=8,
        last_used_seconds=NOW - 100,
        resident_since_seconds=NOW - 100,
    )
    return replace(idle, **changes)  # type: ignore[arg-type]


def node(
    *replicas: ReplicaView, slots: int = 1, devices: int = 1, memory_bytes: int | None = None
) -> NodeView:
    return NodeView(
        devices=tuple(DeviceView(f"cpu:{i}", slots, memory_bytes) for i in range(devices)),
        replicas=replicas,
        dram_budget_bytes=100,
        dram_lifted_bytes=0,
        residency_min_seconds=2.0,
        now_seconds=NOW,
    )


CASES: list[tuple[str, Need, NodeView, Decision]] = [
    ("1: a serving replica is used", need("a"), node(replica("a")), Use(ReplicaId("a-1"))),
    ("4: an empty node starts it", need(), node(), Start(("cpu:0",))),
    ("4: the emptier device is taken", need(), node(replica("a"), slots=2, devices=2), Start(("cpu:1",))),
    (
        "4: two partitions take two devices",
        need(device_bytes=(5, 5)),
        node(devices=2),
        Start(("cpu:0", "cpu:1")),
    ),
    ("5: an idle replica sleeps", need(), node(replica("a")), Evict((ReplicaId("a-1"),), sleep=True)),
    ("4: one that sleeps is woken", need("a"), node(replica("a", state=ASLEEP)), Start(("cpu:0",))),
    ("4: one that sleeps takes no device", need(), node(replica("a", state=ASLEEP)), Start(("cpu:0",))),
    (
        "4: nor memory of one",
        need(device_bytes=(60,)),
        node(replica("a", state=ASLEEP, device_bytes=(60,)), memory_bytes=100),
        Start(("cpu:0",)),
    ),
    (
        "5: who sleeps goes first where DRAM is missing",
        need(dram_bytes=85),
        node(replica("a", last_used_seconds=NOW - 99), replica("c", state=ASLEEP), slots=4),
        Evict((ReplicaId("c-1"),)),
    ),
    (
        "5: the one worth least goes, whenever it was used",
        need(),
        node(
            replica("a", last_used_seconds=NOW - 9, worth_seconds=2.0),
            replica("c", last_used_seconds=NOW - 1, worth_seconds=1.0),
            slots=2,
        ),
        Evict((ReplicaId("c-1"),), sleep=True),
    ),
    (
        "5: the least recently used one goes",
        need(),
        node(replica("a", last_used_seconds=NOW - 1), replica("c", last_used_seconds=NOW - 9), slots=2),
        Evict((ReplicaId("c-1"),), sleep=True),
    ),
    (
        "5: not more than must go: the small old one does not help",
        need(device_bytes=(90,)),
        node(
            replica("a", device_bytes=(5,), last_used_seconds=NOW - 9),
            replica("c", device_bytes=(80,), last_used_seconds=NOW - 1),
            slots=4,
            memory_bytes=100,
        ),
        Evict((ReplicaId("c-1"),), sleep=True),
    ),
    (
        "4: one that is stopping has left its place, though not yet its memory",
        need(),
        node(replica("a", state=ReplicaState.STOPPING)),
        Start(("cpu:0",)),
    ),
    (
        "5: DRAM counts too",
        need(dram_bytes=95),
        node(replica("a"), slots=4),
        Evict((ReplicaId("a-1"),)),
    ),
]


@pytest.mark.parametrize(("why", "wanted", "view", "decision"), CASES, ids=[case[0] for case in CASES])
def test_decision(why: str, wanted: Need, view: NodeView, decision: Decision) -> None:
    assert decide(wanted, view) == decision


@pytest.mark.parametrize(
    ("wanted", "view", "word"),
    [
        (need(dram_bytes=101), node(), "DRAM"),
        (need(device_bytes=(1, 1)), node(), "2 devices"),
        (need(device_bytes=(200,)), node(memory_bytes=100), "largest offers"),
    ],
)
def test_0_what_can_never_fit_is_refused_by_name(wanted: Need, view: NodeView, word: str) -> None:
    decision = decide(wanted, view)
    assert isinstance(decision, Refuse)
    assert word in decision.missing


def test_2_a_replica_whose_rows_are_taken_is_waited_for_and_blocks_nobody() -> None:
    decision = decide(need("a"), node(replica("a", running=8)))
    assert isinstance(decision, Wait)
    assert not decision.for_room


def test_7_loads_into_dram_that_hold_the_memory_are_waited_for() -> None:
    decision = decide(need(dram_bytes=60), replace(node(), dram_lifted_bytes=50))
    assert isinstance(decision, Wait)
    assert decision.for_room


def test_models_of_one_digest_share_their_slabs() -> None:
    twin = replace(need("twin", dram_bytes=60), digest=Digest("a"))
    assert isinstance(decide(twin, node(replica("a", dram_bytes=60), slots=2)), Start)


@pytest.mark.parametrize(
    "state", [each for each in ReplicaState if each not in (ReplicaState.SERVING, ASLEEP)]
)
def test_2_3_its_own_replica_on_its_way_is_waited_for_and_blocks_nobody(state: ReplicaState) -> None:
    decision = decide(need("a"), node(replica("a", state=state)))
    assert isinstance(decision, Wait)
    assert not decision.for_room


def test_3_memory_of_a_stopping_replica_is_waited_for() -> None:
    stopping = replica("a", state=ReplicaState.STOPPING, device_bytes=(80,))
    decision = decide(need(device_bytes=(30,)), node(stopping, slots=4, memory_bytes=100))
    assert isinstance(decision, Wait)
    assert decision.for_room


def test_6_a_busy_replica_past_its_residency_closes_so_that_nobody_starves() -> None:
    decision = decide(need(), node(replica("a", running=3)))
    assert isinstance(decision, Wait)
    assert decision.close == (ReplicaId("a-1"),)
    assert decision.for_room


def test_6_one_that_already_makes_room_is_enough() -> None:
    closing = replica("a", running=3, state=ReplicaState.CLOSING)
    decision = decide(need(), node(closing, replica("c", running=1), slots=2))
    assert isinstance(decision, Wait)
    assert decision.close == ()


def test_7_a_young_busy_replica_keeps_its_residency() -> None:
    decision = decide(need(), node(replica("a", running=3, resident_since_seconds=NOW - 0.5)))
    assert isinstance(decision, Wait)
    assert decision.close == ()
    assert decision.until_seconds == NOW + 1.5


def test_7_a_residency_is_never_shorter_than_the_start_took() -> None:
    slow = replica("a", running=3, resident_since_seconds=NOW - 5, startup_seconds=20.0)
    decision = decide(need(), node(slow))
    assert isinstance(decision, Wait)
    assert (decision.close, decision.until_seconds) == ((), NOW + 15)


def test_3_memory_of_one_that_dozes_is_waited_for_and_its_place_is_free() -> None:
    dozing = replica("a", state=ReplicaState.DOZING, device_bytes=(80,))
    decision = decide(need(device_bytes=(30,)), node(dozing, slots=4, memory_bytes=100))
    assert isinstance(decision, Wait)
    assert decision.for_room
    assert isinstance(decide(need(), node(dozing)), Start)


def test_6_dram_of_one_that_sleeps_and_of_a_busy_one_together_is_enough() -> None:
    view = node(replica("a", running=1, dram_bytes=50), replica("c", state=ASLEEP, dram_bytes=50), slots=4)
    decision = decide(need(dram_bytes=90), view)
    assert isinstance(decision, Wait)
    assert set(decision.close) == {"a-1", "c-1"}


states = st.sampled_from(list(ReplicaState))
OFF_DEVICE = (ReplicaState.STOPPING, ReplicaState.DOZING, ASLEEP)


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), states, st.integers(0, 2), st.integers(1, 40)), max_size=5),
    st.integers(1, 60),
    st.integers(1, 3),
)
def test_what_it_starts_fits_and_what_it_evicts_is_idle(
    tenants: list[tuple[str, ReplicaState, int, int]], size_bytes: int, slots: int
) -> None:
    replicas = tuple(
        replica(
            name,
            state=state,
            running=0 if state in (ReplicaState.DOZING, ASLEEP) else running,
            device_bytes=(taken,),
            dram_bytes=taken,
        )
        for name, state, running, taken in {tenant[0]: tenant for tenant in tenants}.values()
    )
    view = node(*replicas, slots=slots, memory_bytes=60)
    match decide(need("z", device_bytes=(size_bytes,), dram_bytes=size_bytes), view):
        case Start(devices):
            assert devices == ("cpu:0",)
            assert sum(r.device_bytes[0] for r in replicas if r.state is not ASLEEP) + size_bytes <= 60
            assert sum(r.state not in OFF_DEVICE for r in replicas) < slots
        case Evict(replica_ids, sleep):
            going = [r for r in replicas if r.replica_id in replica_ids]
            assert going
            assert all(r.running == 0 and r.state in (ReplicaState.SERVING, ASLEEP) for r in going)
            left = [r for r in replicas if r not in going]
            assert sum(r.device_bytes[0] for r in left if r.state is not ASLEEP) + size_bytes <= 60
            if not sleep:
                assert sum(r.dram_bytes for r in replicas) + size_bytes > 100

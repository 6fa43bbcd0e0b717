"""Reports and the table: versions that build on one another, and nothing guessed when they do not."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import hypothesis.strategies as st
from hypothesis import given

from sllmd.core.ids import Digest, ModelName, NodeId
from sllmd.roles.bookkeeping import ITEM_BYTES, DeltaReader, pack_delta
from sllmd.roles.inventory import (
    CODEC,
    CheckpointFact,
    DeviceFact,
    Inventory,
    ReplicaFact,
    Report,
    delta_report,
    full_report,
    is_urgent,
    merge,
)
from sllmd.roles.table import Change, Delta, Ledger, Table, gone
from sllmd.wire.codec import pack_payload, unpack_payload

A, B = NodeId("a"), NodeId("b")
D = Digest("d")
IDLE = ReplicaFact(ModelName("m"), D, "serving", 0, 0, 8)
ON_DISK = CheckpointFact(D, "ssd", 10, "llama", 2048, 1, 5)
EMPTY = Inventory()
SOME = Inventory((IDLE,), (ON_DISK,), (DeviceFact("cpu:0", None, None, 1, 4),), False, 7)
BUSY = replace(SOME, replicas=(replace(IDLE, running=3),))


def test_a_report_survives_the_way() -> None:
    for report in (full_report("x", 1, SOME), delta_report("x", 2, 1, SOME, BUSY)):
        assert cast("Report", CODEC.unpack(CODEC.pack(report))) == report


def test_a_delta_names_only_what_changed() -> None:
    report = delta_report("x", 2, 1, SOME, BUSY)
    assert report.replicas == BUSY.replicas
    assert (report.checkpoints, report.devices, report.draining, report.chunk_port) == (None,) * 4


def test_reports_that_do_not_build_on_what_is_known_ask_for_a_full_one() -> None:
    known = merge(None, full_report("x", 1, SOME))
    assert known is not None
    assert known.inventory == SOME
    assert merge(None, delta_report("x", 2, 1, SOME, BUSY)) is None
    assert merge(known, delta_report("x", 3, 2, SOME, BUSY)) is None
    assert merge(known, delta_report("y", 2, 1, SOME, BUSY)) is None
    merged = merge(known, delta_report("x", 2, 1, SOME, BUSY))
    assert merged is not None
    assert merged.inventory == BUSY


def test_a_report_that_was_overtaken_changes_nothing() -> None:
    known = merge(None, full_report("x", 2, SOME))
    assert merge(known, full_report("x", 1, EMPTY)) == known
    restarted = merge(known, full_report("y", 1, EMPTY))
    assert restarted is not None
    assert restarted.inventory == EMPTY


def test_how_busy_a_node_is_is_not_urgent() -> None:
    assert not is_urgent(SOME, BUSY)
    for other in (EMPTY, replace(SOME, draining=True), replace(SOME, checkpoints=())):
        assert is_urgent(SOME, other)
    assert is_urgent(SOME, replace(SOME, replicas=(replace(IDLE, state="closing"),)))


def test_a_follower_from_nothing_and_one_from_a_version_end_with_the_same_table() -> None:
    ledger = Ledger(epoch=3)
    ledger.take(A, full_report("x", 1, SOME))
    early = Table().apply(ledger.since(0, 0))
    assert early is not None
    ledger.take(B, full_report("y", 1, EMPTY))
    ledger.forget(A)
    delta = ledger.since(early.epoch, early.number)
    assert delta.base == early.number
    later = early.apply(delta)
    assert later == Table().apply(ledger.since(0, 0))
    assert later is not None
    assert dict(later.inventories) == {B: EMPTY}


def test_how_busy_nodes_are_is_told_when_the_leader_settles() -> None:
    ledger = Ledger(1)
    ledger.take(A, full_report("x", 1, SOME))
    number = ledger.number
    ledger.take(A, delta_report("x", 2, 1, SOME, BUSY))
    assert ledger.number == number
    ledger.settle()
    assert ledger.since(1, number).changes == (Change(A, BUSY),)
    ledger.settle()
    assert ledger.number == number + 1


def test_a_table_takes_no_older_epoch_and_no_delta_with_a_gap() -> None:
    table = Table(3, 7, {A: SOME})
    assert table.apply(Delta(2, 0, 9, ())) is None
    assert table.apply(Delta(3, 6, 9, ())) is None
    assert table.apply(Delta(4, 7, 9, ())) is None
    assert table.apply(Delta(3, 0, 2, ())) == Table(3, 2, {})
    assert table.apply(Delta(4, 0, 1, (Change(B, EMPTY),))) == Table(4, 1, {B: EMPTY})
    assert table.apply(Delta(3, 7, 8, (Change(A, None),))) == Table(3, 8, {})


def test_a_version_that_the_leader_never_had_gets_everything() -> None:
    ledger = Ledger(2)
    ledger.take(A, full_report("x", 1, SOME))
    assert ledger.since(2, 99).base == 0
    assert ledger.since(1, 2).base == 0
    assert ledger.since(2, ledger.number).changes == ()


def test_what_a_node_sees_itself_is_in_its_table_at_once() -> None:
    table = Table(1, 5, {A: SOME, B: SOME})
    assert set(table.without(A).inventories) == {B}
    assert table.without(NodeId("z")) is table
    left = table.without_model(A, D)
    assert left.holders(D) == [B]
    assert left.inventories[A].replicas == ()
    assert left.number == table.number


def test_what_left_with_a_node_is_known_with_its_name() -> None:
    before = Table(1, 1, {A: SOME, B: EMPTY})
    assert gone(before, before.without(A)) == {D: A}
    assert gone(before, before.without(B)) == gone(before, before.without_model(A, D)) == {}


def test_holders_come_memory_first_and_files_only_where_files_do() -> None:
    def holding(tier: str) -> Inventory:
        return Inventory(checkpoints=(replace(ON_DISK, tier=tier),))

    table = Table(1, 1, {A: holding("ssd"), B: holding("dram"), NodeId("c"): holding("files")})
    assert table.holders(D) == [B, A]
    assert table.holders(D, files_only=True) == [B, A, NodeId("c")]
    assert table.checkpoint(D) is not None
    assert table.checkpoint(Digest("?")) is None


def test_a_large_table_travels_in_small_items() -> None:
    many = Inventory(checkpoints=tuple(replace(ON_DISK, digest=Digest(f"{i:032x}")) for i in range(2000)))
    delta = Delta(1, 0, 9, tuple(Change(NodeId(f"n{i}"), many) for i in range(5)))
    items = [unpack_payload(pack_payload(item, 4 * ITEM_BYTES)) for item in pack_delta(delta)]
    assert len(items) > 2
    reader = DeltaReader()
    assert [reader.read(item) for item in items] == [None] * (len(items) - 1) + [delta]


INVENTORIES = st.sampled_from(
    [EMPTY, SOME, BUSY, replace(SOME, draining=True), replace(BUSY, checkpoints=())]
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("report"), st.sampled_from([A, B]), INVENTORIES),
        st.tuples(st.just("forget"), st.sampled_from([A, B]), st.none()),
        st.tuples(st.just("settle"), st.none(), st.none()),
        st.tuples(st.just("follow"), st.none(), st.none()),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_happens_a_follower_has_what_the_nodes_last_said(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    ledger, table = Ledger(1), Table()
    said: dict[NodeId, Inventory] = {}
    versions = {A: 0, B: 0}
    for kind, node, inventory in steps:
        if kind == "report":
            versions[node] += 1
            before = said.get(node)
            report = full_report("x", versions[node], inventory)
            if before is not None:
                report = delta_report("x", versions[node], versions[node] - 1, before, inventory)
            assert ledger.take(node, report)
            said[node] = inventory
        elif kind == "forget":
            ledger.forget(node)
            said.pop(node, None)
        elif kind == "settle":
            ledger.settle()
        else:
            table = table.apply(ledger.since(table.epoch, table.number)) or table
    ledger.settle()
    final = table.apply(ledger.since(table.epoch, table.number))
    assert final is not None
    assert dict(final.inventories) == said

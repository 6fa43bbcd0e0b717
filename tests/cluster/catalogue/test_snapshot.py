"""Any course of commands: the same on every node, whole after a snapshot, with books that add up."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sllmd.cluster.catalogue import (
    EMPTY,
    Catalogue,
    Command,
    apply,
    pack_command,
    restore,
    snapshot,
    unpack_command,
)
from sllmd.cluster.catalogue import commands as c
from sllmd.cluster.catalogue.records import DeploymentSpec, ReplicaState
from sllmd.cluster.catalogue.table import Table
from sllmd.core.errors import ProtocolError

NAMES = st.sampled_from(["a", "b", "c"])
EXPECTED = st.none() | st.integers(0, 12)
DEVICES = st.dictionaries(st.sampled_from(["cpu:0", "cuda:0"]), st.integers(1, 60), max_size=2)
SPECS = st.builds(
    DeploymentSpec,
    digest=st.text(max_size=3),
    source=st.just("store"),
    aliases=st.lists(st.sampled_from(["a", "b", "x", "y"]), max_size=2).map(tuple),
    keep_alive_seconds=st.none() | st.floats(0, 1e6),
    min_replicas=st.integers(0, 2),
    max_replicas=st.integers(1, 3),
    placement=st.dictionaries(st.sampled_from(["rack"]), NAMES),
)
INTENTS = st.builds(c.ReplicaIntent, NAMES, NAMES, NAMES, DEVICES)
BODIES = st.one_of(
    st.builds(c.ClientOpen, NAMES),
    st.builds(c.EpochBegin, st.integers(0, 4)),
    st.builds(c.NodeAdmit, NAMES, NAMES, NAMES, NAMES, DEVICES, st.dictionaries(NAMES, NAMES), EXPECTED),
    st.builds(c.NodeRemove, NAMES, EXPECTED),
    st.builds(c.NodeCordon, NAMES, st.booleans()),
    st.builds(c.DeploymentPut, NAMES, SPECS, EXPECTED),
    st.builds(c.DeploymentDelete, NAMES, EXPECTED),
    st.builds(c.ReplicaPlan, st.lists(INTENTS, max_size=3).map(tuple)),
    st.builds(c.ReplicaMove, NAMES, st.sampled_from(ReplicaState), st.integers(0, 12)),
    st.builds(c.ReplicaGone, NAMES, st.integers(0, 12), st.just("lost")),
    st.builds(c.ApiKeyPut, NAMES, NAMES, NAMES, EXPECTED),
    st.builds(c.ApiKeyDelete, NAMES),
    st.builds(c.TokenCreate, NAMES, NAMES, st.floats(0, 10), st.integers(1, 2)),
    st.builds(c.TokenConsume, NAMES, NAMES, st.floats(0, 10), NAMES),
    st.builds(c.TokenRevoke, NAMES),
    st.builds(c.SettingPut, NAMES, st.binary(max_size=4), EXPECTED),
)
COMMANDS = st.builds(
    Command,
    body=BODIES,
    client=st.integers(0, 3),
    seq=st.integers(0, 5),
    answered_below=st.integers(0, 4),
    epoch=st.none() | st.integers(0, 4),
)


def run(commands: list[Command], state: Catalogue = EMPTY) -> tuple[Catalogue, list[Any]]:
    results = []
    for command in commands:
        state, result = apply(state, command)
        results.append(result)
    return state, results


@given(st.lists(COMMANDS, max_size=25), st.integers(0, 25))
@settings(max_examples=150, deadline=None)
def test_a_snapshot_anywhere_changes_nothing(commands: list[Command], cut: int) -> None:
    whole, results = run(commands)
    half, first = run(commands[:cut])
    again, second = run(commands[cut:], restore(snapshot(half)))
    assert (again, first + second) == (whole, results)
    assert snapshot(again) == snapshot(whole)


@given(st.lists(COMMANDS, max_size=40))
@settings(max_examples=150, deadline=None)
def test_the_books_add_up(commands: list[Command]) -> None:
    state, _ = run(commands)
    used: Counter[str] = Counter()
    for replica in state.replicas.values():
        for device, size_bytes in replica.devices.items():
            used[f"{replica.node}/{device}"] += size_bytes
        assert replica.node in state.nodes
        assert replica.deployment in state.deployments
    assert dict(state.used.items()) == dict(used)
    names = {name for one in state.deployments.values() for name in (one.name, *one.spec.aliases)}
    assert {name for name, _ in state.names.items()} == names
    assert state.revision == len(commands)


@given(COMMANDS)
def test_commands_survive_their_bytes(command: Command) -> None:
    assert unpack_command(pack_command(command)) == command


@given(st.binary(max_size=60))
def test_garbage_is_no_command_and_no_snapshot(data: bytes) -> None:
    for read in (unpack_command, restore):
        with pytest.raises(ProtocolError):
            read(data)


@given(COMMANDS, st.integers(0, 200), st.integers(0, 255))
def test_a_changed_command_is_another_one_or_none(command: Command, at: int, value: int) -> None:
    data = bytearray(pack_command(command))
    data[at % len(data)] = value
    try:
        found = unpack_command(bytes(data))
    except ProtocolError:
        return
    assert isinstance(found, Command)
    apply(EMPTY, found)


@given(st.lists(st.tuples(st.text(max_size=3), st.none() | st.integers())))
def test_a_table_is_a_dict_that_does_not_change(steps: list[tuple[str, int | None]]) -> None:
    table: Table[int] = Table()
    model: dict[str, int] = {}
    for key, value in steps:
        before = dict(table.items())
        fresh = table.without(key) if value is None else table.put(key, value)
        assert dict(table.items()) == before
        table = fresh
        model.pop(key, None)
        if value is not None:
            model[key] = value
    assert list(table.items()) == sorted(model.items())
    assert len(table) == len(model)
    assert table == Table(model.items())

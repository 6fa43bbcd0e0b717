"""Commands about the cluster, against a real daemon that is alone in one."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from sllmd.cli.agreement import agreement_text, cluster_pairs
from sllmd.cli.cluster import is_member, member_note, member_state
from sllmd.cli.follow import event_line, log_line
from sllmd.cli.tables import Column, table
from tests.cli.conftest import RunCommand, RunningDaemon, command, environment
from tests.waiting import until

KEY_BEGIN = "sk-sllm-"


@pytest.fixture
def leading(sllmd: RunCommand, at_daemon: RunningDaemon) -> RunningDaemon:
    """The daemon once it leads its cluster of one."""

    def leads() -> bool:
        [row] = json.loads(sllmd("members", "-o", "json").out)
        return bool(row["leader"] and row["admitted"])

    until(leads, "the node leads")
    return at_daemon


def test_members_and_nodes(sllmd: RunCommand, leading: RunningDaemon) -> None:
    head, line = sllmd("members").out.splitlines()
    assert head.split()[:5] == ["NODE", "ADDRESS", "STATUS", "FOR", "ROLE"]
    assert " * " in line
    assert "voter, leads" in line
    [row] = json.loads(sllmd("members", "-o", "json").out)
    [node] = json.loads(sllmd("node", "list", "-o", "json").out)
    assert (node["name"], node["id"]) == (row["name"], row["id"])


def test_the_status_tells_of_the_cluster(sllmd: RunCommand, leading: RunningDaemon) -> None:
    text = sllmd("status").out
    assert "1 node; " in text
    assert "1 voter (" in text
    assert "degraded" not in text
    assert json.loads(sllmd("status", "-o", "json").out)["cluster"]["leads"]


def test_keys(sllmd: RunCommand, leading: RunningDaemon) -> None:
    made = sllmd("keys", "create", "team", "--scope", "inference", "--scope", "admin")
    assert made.out.startswith(f"{KEY_BEGIN}team-")
    assert len(made.out.split()) == 1, "a script takes the output as it is"
    assert "not shown again" in made.err
    assert sllmd("keys", "create", "team").code == 7
    listed = sllmd("keys", "list")
    assert KEY_BEGIN not in listed.out
    assert "admin, inference" in listed.out
    assert sllmd("keys", "revoke", "team").code == 0
    again = sllmd("keys", "revoke", "team")
    assert (again.code, again.out) == (4, "")
    assert sllmd("keys", "create", "no spaces").code == 2


def test_what_is_refused_says_what_to_do(sllmd: RunCommand, leading: RunningDaemon) -> None:
    [row] = json.loads(sllmd("members", "-o", "json").out)
    for arguments, code, words in (
        (("node", "rm", row["name"]), 7, "sllmd leave"),
        (("node", "rm", "nobody"), 4, "sllmd members"),
        (("leave",), 7, "no other node"),
        (("monitor", "nobody"), 4, "sllmd members"),
        (("leave", "--drain", "soon"), 2, "5m"),
    ):
        outcome = sllmd(*arguments)
        assert (outcome.code, outcome.out) == (code, ""), outcome
        assert words in outcome.err


def test_events_and_log_lines_that_are_remembered(sllmd: RunCommand, leading: RunningDaemon) -> None:
    sllmd("load", "tiny")
    events = [json.loads(line) for line in sllmd("events", "--no-follow", "-o", "json").out.splitlines()]
    assert {"leader.elected", "node.started", "replica.serving"} <= {event["kind"] for event in events}
    [name] = {event["told_by"] for event in events}
    assert {event["node"] for event in events} == {name}
    assert "replica.serving" in sllmd("events", "--no-follow").out
    lines = sllmd("monitor", "--no-follow", "--model", "tiny", "-n", "1000").out
    assert "replica serves" in lines
    assert "model=tiny" in lines.splitlines()[-1]
    assert sllmd("monitor", "--no-follow", "--level", "error").out == ""


def test_a_refused_request_is_a_line_as_others_are(sllmd: RunCommand, leading: RunningDaemon) -> None:
    assert sllmd("keys", "revoke", "nobody").code == 4
    shown = sllmd("monitor", "--no-follow", "-n", "1")
    assert (shown.code, shown.err) == (0, "")
    assert "error=not_found" in shown.out


def test_following_shows_what_happens_and_ends_with_its_reader(
    sllmd: RunCommand, leading: RunningDaemon
) -> None:
    """What happened before comes first, this node's start at least; so it listens when the key is made."""
    process = subprocess.Popen(
        command("events", "-o", "jsonl"),
        env=environment(SLLMD_ADDR=leading.address),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process, process.stdout as lines:
        assert lines.readline()
        assert sllmd("keys", "create", "followed").code == 0
        assert ("key.created", "followed") in (
            (event["kind"], event.get("key")) for event in map(json.loads, lines)
        )
        process.terminate()
    assert process.wait(60) != 0


CONTROL = {"store": "raft", "position": 9, "age_seconds": 0.2, "voters_alive": 3, "voters_may_fail": 1}


@pytest.mark.parametrize(
    ("voters", "nodes", "may_fail", "text"),
    [
        (["a"], 1, 0, "1 voter (a), the only node"),
        (["a"], 2, 0, "2 nodes, 1 voter (a): losing it stops changes, not serving"),
        (["b", "a", "c"], 3, 1, "3 voters (a, b, c): 1 may fail"),
        (
            ["a", "b", "c"],
            4,
            0,
            "3 voters (a, b, c): none may fail; one more loss stops changes, not serving",
        ),
        ([], 2, 0, "nobody is known to vote yet"),
    ],
)
def test_agreement_in_words(voters: list[str], nodes: int, may_fail: int, text: str) -> None:
    assert agreement_text({**CONTROL, "voters": voters, "voters_may_fail": may_fail}, nodes) == text


def test_a_lost_majority_in_words() -> None:
    text = agreement_text({**CONTROL, "voters": ["a", "b", "c"], "voters_alive": 1}, 3)
    assert text == "3 voters (a, b, c), 1 alive: no majority, nothing can be changed"


def test_an_external_store_in_words() -> None:
    assert agreement_text({**CONTROL, "store": "etcd", "voters": []}, 3) == "kept by etcd"


def test_a_degraded_cluster_in_words() -> None:
    control = {**CONTROL, "voters": ["a", "b", "c"], "age_seconds": None}
    cluster = {
        "cluster_id": "c1",
        "leader": None,
        "epoch": 4,
        "members": {"alive": 2, "dead": 1, "left": 5},
        "control": control,
        "degraded": ["c is dead"],
    }
    pairs = dict(cluster_pairs(cluster))
    assert pairs["cluster"] == "c1: 3 nodes (2 alive, 1 dead); nobody leads (epoch 4)"
    assert pairs["catalogue"] == "change 9, not heard of yet"
    assert pairs["degraded"] == "c is dead"
    assert list(cluster_pairs(None)) == []


WELL = {
    "name": "n",
    "state": "alive",
    "since": 1.0,
    "suspected_by": [],
    "name_conflict": False,
    "admitted": True,
    "cordoned": False,
    "draining": False,
    "drained_since": None,
}
"""What matters here of a member."""


def test_notes_on_a_member() -> None:
    assert member_note(WELL) == ""
    unwell = {"state": "suspect", "suspected_by": ["a", "b"], "name_conflict": True}
    assert member_note({**WELL, **unwell}) == "no answer to a, b; another node has this name"
    drained = {**WELL, "cordoned": True, "drained_since": 5.0}
    assert member_note(drained) == "nothing runs there; no new work until `sllmd undrain n`"
    assert "not heard of" in member_note({**WELL, "state": "dead", "since": None})


@pytest.mark.parametrize(
    ("changes", "state", "listed"),
    [
        ({}, "alive", True),
        ({"draining": True, "cordoned": True}, "draining", True),
        ({"drained_since": 5.0, "cordoned": True}, "drained", True),
        ({"state": "suspect", "draining": True}, "suspect", True),
        ({"state": "dead"}, "dead", True),
        ({"state": "left"}, "stopped", True),
        ({"state": "left", "admitted": False}, "left", False),
    ],
)
def test_who_is_listed_and_as_what(changes: dict, state: str, listed: bool) -> None:
    row = {**WELL, **changes}
    assert (member_state(row), is_member(row)) == (state, listed)


def test_a_drained_node_says_so_everywhere(sllmd: RunCommand, leading: RunningDaemon) -> None:
    try:
        drained = sllmd("drain")
        assert "drained in" in drained.out
        until(lambda: "drained" in sllmd("members").out, "members show it")
        assert "sllmd undrain" in sllmd("members").out
        assert "drained for" in sllmd("status").out
        status = json.loads(sllmd("status", "-o", "json").out)
        assert (status["state"], status["drained_since"] <= time.time()) == ("drained", True)
    finally:
        assert sllmd("undrain").code == 0
    until(lambda: "drained" not in sllmd("members").out, "it takes work again")
    assert ", ready" in sllmd("status").out


@pytest.fixture
def greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The time of day there."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def test_lines_for_people(greenwich: None) -> None:
    event = {"id": "r-1", "time": 3661.5, "kind": "member.dead", "text": "b is dead"}
    assert event_line(event, wide=False) == "01:01:01  member.dead         b is dead"
    assert event_line(event, wide=True).startswith("1970-01-01 01:01:01.500  ")
    line = {"id": "r-2", "time": 0.0, "level": "info", "event": "loaded", "seconds": 0.25, "to": None}
    assert log_line(line, wide=False) == "00:00:00  info     loaded  seconds=0.25"
    gap = {"id": None, "time": 0.0, "kind": "gap", "lost": 3, "text": "3 entries are gone"}
    assert log_line(gap, wide=False) == "00:00:00  -- 3 entries are gone --"
    crash = {**line, "event": "crash", "seconds": None, "exception": "Traceback\n  ValueError"}
    assert log_line(crash, wide=False).endswith("crash\nTraceback\n  ValueError")
    listed = {**line, "seconds": None, "keys": ["a", "b"]}
    assert log_line(listed, wide=False) == '00:00:00  info     loaded  keys=["a", "b"]'


def test_what_strangers_write_is_shown_and_not_obeyed(greenwich: None) -> None:
    """A path or a node's name may hold what clears a terminal, or looks like another line."""
    evil = "/\x1b[2J\n00:00:00  info     all is well\x9b31m"
    shown = r"/\x1b[2J\n00:00:00  info     all is well\x9b31m"
    line = {"id": "r-2", "time": 0.0, "level": "info", "event": "request", "path": evil}
    assert log_line(line, wide=False) == f"00:00:00  info     request  path={shown}"
    crash = log_line({**line, "path": None, "exception": f"one\n{evil}"}, wide=False)
    assert "\x1b" not in crash
    event = {"id": "r-1", "time": 0.0, "kind": "join.refused", "text": evil}
    assert event_line(event, wide=False).endswith(shown)
    row = {"name": evil}
    assert table([row], [Column("NODE", lambda row: row["name"])], wide=False) == f"NODE\n{shown}\n"

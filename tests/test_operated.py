"""Three daemons as their operator has them: seen from each, followed from each, one killed, one let go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.live import END_SECONDS, LiveDaemon, announced, asking, start
from tests.waiting import until

pytestmark = pytest.mark.slow

NAMES = ("a", "b", "c")
SETTINGS = {"workers.engine": "fake", "workers.in_process": True}


@contextmanager
def cluster(directory: Path) -> Iterator[dict[str, LiveDaemon]]:
    """Daemons a, b and c, all voters; those that a test does not end are ended."""
    daemons: dict[str, LiveDaemon] = {}
    with ExitStack() as stack:
        for name in NAMES:
            join = {} if name == "a" else {"cluster.join": address(daemons["a"])}
            daemon = start(directory / name, {**SETTINGS, "node.name": name, **join})
            stack.callback(end, daemon)
            announced(daemon)
            daemons[name] = daemon
        until(lambda: len(voters(daemons["a"])) == 3, "all of three vote", 60)
        yield daemons


def end(daemon: LiveDaemon) -> None:
    for pid in daemon.family():
        os.kill(pid, signal.SIGTERM)
    daemon.process.wait(END_SECONDS)


def members(daemon: LiveDaemon) -> dict[str, dict[str, Any]]:
    return {member["name"]: member for member in daemon.ask("/sllmd/v1/members").body["members"]}


def states(daemon: LiveDaemon) -> dict[str, str]:
    return {name: member["state"] for name, member in members(daemon).items()}


def reasons(daemon: LiveDaemon, about: str) -> list[str]:
    """Why the cluster is not well, of one node."""
    return [text for text in daemon.status()["cluster"]["degraded"] if text.startswith(about)]


def voters(daemon: LiveDaemon) -> list[str]:
    return daemon.ask("/sllmd/v1/members").body["control"]["voters"]


def address(daemon: LiveDaemon) -> str:
    [me] = [member for member in members(daemon).values() if member["is_me"]]
    return me["address"]


def leader(daemon: LiveDaemon) -> str | None:
    return daemon.ask("/sllmd/v1/members").body["leader"]


def order(
    daemon: LiveDaemon, method: str, path: str, headers: Mapping[str, str] = {}
) -> tuple[int, dict[str, Any]]:
    url = urlsplit(daemon.url)
    connection = HTTPConnection(url.hostname or "", url.port, timeout=60)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


class Follower:
    """Reads a stream in a thread."""

    def __init__(self, daemon: LiveDaemon, path: str) -> None:
        self.entries: list[dict[str, Any]] = []
        self.is_open = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(daemon.url, path), daemon=True)
        self._thread.start()
        assert self.is_open.wait(END_SECONDS)

    def _read(self, url: str, path: str) -> None:
        with asking(url, path) as response:
            assert response.status == 200
            response.readline()
            self.is_open.set()
            while line := response.readline():
                if line.startswith(b"data: {"):
                    self.entries.append(json.loads(line.removeprefix(b"data: ")))

    def saw(self, **wanted: object) -> bool:
        return any(wanted.items() <= entry.items() for entry in list(self.entries))


def test_members_of_three_from_each(tmp_path: Path) -> None:
    with cluster(tmp_path) as daemons:
        for daemon in daemons.values():
            until(lambda daemon=daemon: leader(daemon) == leader(daemons["a"]), "all agree on who leads")
            until(lambda daemon=daemon: states(daemon) == dict.fromkeys(NAMES, "alive"), "all see all")
            seen = members(daemon)
            assert {member["role"] for member in seen.values()} == {"voter"}
            assert [name for name, member in seen.items() if member["leader"]] == [leader(daemon)]
        _monitor_across_nodes(daemons)
        _key_made_on_one_opens_another(daemons)
        _leader_killed_and_removed(daemons)
        _one_leaves(daemons)


def _monitor_across_nodes(daemons: dict[str, LiveDaemon]) -> None:
    """b's log, followed through a, by level and model; b loads the model itself."""
    log = Follower(daemons["a"], "/sllmd/v1/logs?node=b&level=debug&model=tiny")
    events = Follower(daemons["a"], "/sllmd/v1/events?node=b")
    assert daemons["b"].ask("/sllmd/v1/models/tiny/load", {}).status == 200
    assert daemons["b"].complete("tiny", max_tokens=1).status == 200
    until(lambda: log.saw(path="/v1/completions", status=200), "a's follower has b's line")
    assert {line["model"] for line in log.entries} == {"tiny"}
    until(lambda: events.saw(kind="replica.serving", model="tiny"), "a's follower has b's event")


def _key_made_on_one_opens_another(daemons: dict[str, LiveDaemon]) -> None:
    """And from then on none lets anybody in without one, until the last is revoked."""
    made = daemons["b"].ask("/sllmd/v1/keys", {"id": "team", "scopes": ["admin"]})
    assert made.status == 200
    key, other = {"Authorization": f"Bearer {made.body['secret']}"}, daemons["c"]
    until(lambda: other.ask("/sllmd/v1/keys").status == 401, "c asks for a key")
    status, listed = order(other, "GET", "/sllmd/v1/keys", key)
    assert (status, [one["id"] for one in listed["keys"]]) == (200, ["team"])
    assert order(other, "DELETE", "/sllmd/v1/keys/team", key)[0] == 200
    for daemon in daemons.values():
        until(lambda daemon=daemon: daemon.ask("/sllmd/v1/keys").status == 200, "no key is left to ask for")  # type: ignore[misc]


def monitor(daemon: LiveDaemon, node: str) -> subprocess.Popen[str]:
    """The command, asking ``daemon`` for another's log."""
    return subprocess.Popen(
        [sys.executable, "-m", "sllmd", "--addr", f"unix:{daemon.socket}", "monitor", node],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def remove(daemon: LiveDaemon, node: str) -> tuple[dict[str, Any], str]:
    """What the command prints, and says beside."""
    done = subprocess.run(
        [sys.executable, "-m", "sllmd", "--addr", f"unix:{daemon.socket}", "-o", "json", "node", "rm", node],
        capture_output=True, text=True, timeout=END_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def _leader_killed_and_removed(daemons: dict[str, LiveDaemon]) -> None:
    """Followed from a survivor; then removed, which is refused while it seems to live."""
    lost = leader(daemons["a"])
    assert lost is not None
    watching, other = [daemon for name, daemon in daemons.items() if name != lost]
    events = Follower(watching, "/sllmd/v1/events")
    daemons[lost].process.kill()
    status, refused = order(watching, "DELETE", f"/sllmd/v1/nodes/{lost}")
    assert (status, refused["error"]["code"]) == (409, "conflict")
    until(lambda: leader(watching) not in (None, lost), "another leads")
    until(lambda: events.saw(kind="leader.elected", leader=leader(watching)), "that is told")
    until(lambda: events.saw(kind="member.dead", node=lost), "its death is told", 60)
    assert events.saw(kind="member.suspect", node=lost)
    until(
        lambda: any(f"sllmd node rm {lost}" in reason for reason in reasons(watching, lost)),
        "so is the way out",
    )
    until(lambda: members(other)[lost]["state"] == "dead", "the other knows, too", 60)
    with monitor(other, lost) as monitoring:
        _, said = monitoring.communicate(timeout=END_SECONDS)
    assert (monitoring.returncode, f"{lost} is dead" in said) == (5, True)
    removed, advice = remove(other, lost)
    assert removed == {"node": lost, "id": members(other)[lost]["id"], "state": "dead", "removed": True}
    assert "sllmd keyring rotate" in advice
    until(lambda: members(watching)[lost]["state"] == "left", "nobody waits for it any more")
    until(lambda: events.saw(kind="node.removed", node=lost), "that is told")
    until(lambda: lost not in voters(watching), "its vote is gone", 60)
    until(lambda: watching.status()["cluster"]["degraded"] == [], "all is well")
    del daemons[lost]


def _one_leaves(daemons: dict[str, LiveDaemon]) -> None:
    """The one that leads; the daemon ends well and the other goes on alone."""
    leaving = leader(next(iter(daemons.values())))
    assert leaving is not None
    [staying] = [daemon for name, daemon in daemons.items() if name != leaving]
    events = Follower(staying, "/sllmd/v1/events")
    with monitor(staying, leaving) as monitoring:
        assert monitoring.stdout is not None
        assert monitoring.stdout.readline()
        status, report = order(daemons[leaving], "POST", "/sllmd/v1/leave")
        assert (status, report) == (200, {"node": leaving, "left": True, "cut_short": 0})
        assert daemons[leaving].process.wait(END_SECONDS) == 0
        _, said = monitoring.communicate(timeout=END_SECONDS)
    assert (monitoring.returncode, f"{leaving} left the cluster for good" in said) == (5, True)
    until(lambda: events.saw(kind="member.left", node=leaving), "its leaving is told")
    until(lambda: events.saw(kind="node.removed", node=leaving), "it is no member any more")
    until(lambda: voters(staying) == [name for name in daemons if name != leaving], "its vote is gone")
    until(lambda: staying.status()["cluster"]["degraded"] == [], "all is well")
    assert staying.ask("/sllmd/v1/keys", {"id": "alone"}).status == 200

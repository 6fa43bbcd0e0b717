"""Real daemons that find each other: TLS, tokens, deaths in bad moments, and what the log must not say."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.live import END_SECONDS, FAKE, LiveDaemon, announced, start
from tests.waiting import until

_MEET = re.compile(r"^  cluster \w+ · .* · nodes meet at (\S+)$")
NODE = {**FAKE, "workers.in_process": "true"}

pytestmark = pytest.mark.slow


class Daemons:
    """Of one test; nothing of them is left afterwards."""

    def __init__(self, directory: Path, rooms: ExitStack) -> None:
        self._directory = directory
        self._rooms = rooms
        self.all: list[LiveDaemon] = []

    def begin(self, name: str, **settings: object) -> LiveDaemon:
        """One on its way up; the same name again is the same node."""
        daemon = start(self._directory / name, {**NODE, "node.name": name, **settings}, dev=False)
        self._rooms.callback(_kill, daemon)
        self.all.append(daemon)
        return daemon

    def join(self, name: str, addresses: list[str], token: str) -> LiveDaemon:
        """One more, which waits for whoever answers."""
        file = self._directory / f"{name}.token"
        file.write_text(token)
        file.chmod(0o600)
        return self.begin(name, **{"cluster.join": ",".join(addresses), "cluster.token_file": file})


def _kill(daemon: LiveDaemon) -> None:
    for pid in daemon.family():
        os.kill(pid, signal.SIGKILL)
    daemon.process.wait()


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    with ExitStack() as rooms:
        yield Daemons(tmp_path, rooms)


def serving(daemon: LiveDaemon) -> LiveDaemon:
    announced(daemon)
    return daemon


def address(daemon: LiveDaemon) -> str:
    return next(match[1] for line in daemon.lines if (match := _MEET.match(line)))


def token(daemon: LiveDaemon) -> str:
    made = daemon.ask("/sllmd/v1/tokens", {"lifetime_seconds": 600})
    assert made.status == 200, made.raw
    return str(made.body["token"])


def states(daemon: LiveDaemon) -> dict[str, str]:
    return {each["name"]: each["state"] for each in daemon.ask("/sllmd/v1/members").body["members"]}


@contextmanager
def stopped(daemon: LiveDaemon) -> Iterator[None]:
    os.kill(daemon.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.process.pid, signal.SIGCONT)


def test_three_daemons_join_by_token_and_a_killed_one_comes_back(daemons: Daemons) -> None:
    one = serving(daemons.begin("one"))
    secrets = [token(one), token(one)]
    two = serving(daemons.join("two", [address(one)], secrets[0]))
    three = serving(daemons.join("three", [address(two)], secrets[1]))
    alive = {"one": "alive", "two": "alive", "three": "alive"}
    for daemon in (one, two, three):
        until(lambda daemon=daemon: states(daemon) == alive, "all see all")
    _kill(three)
    until(lambda: states(one)["three"] != "alive", "its death is noticed")
    back = serving(daemons.begin("three"))
    for daemon in (one, two, back):
        until(lambda daemon=daemon: states(daemon) == alive, "it is back")
    said = "\n".join(line for daemon in daemons.all for line in daemon.lines)
    assert not any(secret.split(".")[2] in said for secret in secrets)
    assert "node admitted" in said, "the log was read"
    for daemon in (back, two, one):
        daemon.end()


def test_a_join_through_a_node_that_dies_meanwhile_goes_on_through_another(daemons: Daemons) -> None:
    one = serving(daemons.begin("one"))
    two = serving(daemons.join("two", [address(one)], token(one)))
    until(lambda: states(one) == {"one": "alive", "two": "alive"}, "two are there")
    secret = token(one)
    os.kill(two.process.pid, signal.SIGSTOP)
    three = daemons.join("three", [address(two), address(one)], secret)
    until(lambda: three.said("slabs have small pages: slower reads") or three.lines, "it asks")
    _kill(two)
    serving(three)
    until(lambda: states(one)["three"] == "alive", "it is in")
    three.end()
    one.end()


def test_who_waits_for_a_cluster_ends_when_told_to(daemons: Daemons) -> None:
    waiting = daemons.join("one", ["127.0.0.1:1"], f"sllm-join.{'0' * 10}.{'0' * 32}.{'0' * 64}")
    until(lambda: waiting.said("cannot join yet, trying on"), "it says that it waits")
    waiting.process.send_signal(signal.SIGTERM)
    assert waiting.process.wait(END_SECONDS) == 0
    assert not (waiting.directory / "data" / "cluster" / "journal").exists(), "it founded nothing"


def test_a_refusal_ends_it_at_once_and_clearly(daemons: Daemons) -> None:
    one = serving(daemons.begin("one"))
    wrong = token(one)[:-64] + "ab" * 32
    two = daemons.join("two", [address(one)], wrong)
    assert two.process.wait(END_SECONDS) == 7  # refused
    until(lambda: len(two.lines) > 1 and "check the address" in two.lines[-1], "it says what to do")
    assert "not the one the join token was made for" in two.lines[-2]
    one.end()

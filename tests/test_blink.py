"""The README's commands: a stream is watched, its server drained or killed; nothing is seen but a blink."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.live import LiveDaemon, announced, clean_environment, start
from tests.waiting import until

pytestmark = pytest.mark.slow

TWO = ["--join", "127.0.0.1", "--listen", "127.0.0.1:9343"]
README = Path(__file__).parent.parent / "README.md"


def commands() -> list[list[str]]:
    """The block below the words that announce it."""
    found = re.search(r"\*\*Watch a stream.*?```\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None, "README shows no stream that moves"
    return [shlex.split(line, comments=True) for line in found[1].splitlines() if line.strip()]


@contextmanager
def nodes(directory: Path) -> Iterator[tuple[LiveDaemon, LiveDaemon]]:
    """``one`` and ``two`` as the first two commands start them, but for ports and directories."""
    first, second, *_ = commands()
    assert first == ["sllmd", "start", "--dev", "--name", "one"]
    assert second == ["sllmd", "start", "--dev", "--name", "two", *TWO]
    daemons: list[LiveDaemon] = []
    try:
        one = start(directory / "one", {"node.name": "one"})
        daemons.append(one)
        announced(one)
        [me] = one.ask("/sllmd/v1/members").body["members"]
        two = start(directory / "two", {"node.name": "two", "cluster.join": json.dumps([me["address"]])})
        daemons.append(two)
        announced(two)
        yield one, two
    finally:
        for daemon in daemons:
            daemon.process.kill()
            for pid in daemon.family():
                subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)
            daemon.process.wait()


class Watched:
    """The third command, and when each of its lines came."""

    def __init__(self, url: str) -> None:
        watch = [word.replace("http://127.0.0.1:9343", url) for word in commands()[2]]
        self.lines: list[tuple[float, str]] = []
        self._process = subprocess.Popen(watch, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip():
                self.lines.append((time.monotonic(), line.strip()))

    def whole(self) -> str:
        """Its text to the end; nothing in it tells of a change."""
        with self._process:
            assert self._process.wait(120) == 0
            self._reader.join()
        *pieces, last = [line for _, line in self.lines]
        assert last == "data: [DONE]"
        events = [json.loads(piece.removeprefix("data: ")) for piece in pieces]
        assert not any("error" in event for event in events)
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        return "".join(event["choices"][0]["text"] for event in events)

    @property
    def blink_seconds(self) -> float:
        """The longest silence."""
        times = [moment for moment, _ in self.lines]
        return max(later - earlier for earlier, later in pairwise(times))


def serving(daemon: LiveDaemon) -> int:
    return sum(replica["running"] for replica in daemon.status()["replicas"])


def run(daemon: LiveDaemon, *words: str) -> str:
    """What a command says that succeeds."""
    done = subprocess.run(
        [sys.executable, "-m", "sllmd", "--addr", daemon.url, *words],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("how", ["drain", "kill", "drain, then kill"])
def test_a_stream_outlives_its_server(tmp_path: Path, how: str) -> None:
    with nodes(tmp_path) as (one, two):
        assert one.complete("tiny", max_tokens=1).status == 200
        until(lambda: two.ask("/v1/models/tiny").body["state"] == "serving", "it is known where it serves")
        whole = Watched(two.url)
        text = whole.whole()
        watched = Watched(two.url)
        until(lambda: len(watched.lines) > 50, "the stream runs")
        assert (serving(one), serving(two)) == (1, 0), "it is watched through another node than its own"
        if "drain" in how:
            drain = commands()[3]
            assert drain == ["sllmd", "drain", "one"]
            assert "one drained in" in run(two, *drain[1:])
            assert serving(one) == 0
        if how == "drain, then kill":  # ``one`` is the only voter, and ``two`` has the model from before
            assert watched.whole() == text
            run(two, "undrain", "one")
            watched = Watched(two.url)
            until(lambda: len(watched.lines) > 50, "the stream runs again")
        if "kill" in how:
            one.process.send_signal(signal.SIGKILL)
        assert watched.whole() == text
        assert watched.blink_seconds < 60, "a cold start on a busy machine is in it"

"""Streams that do not break, with the real engine in float32: every token is that of a stream left alone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live import LiveDaemon, announced, live_daemon, put_model, start
from tests.test_two_nodes import card, running, served, settings_to_join
from tests.waiting import until

pytestmark = pytest.mark.slow

REAL = {"workers.engine": "transformers", "engine.dtype": "float32", "engine.threads": 1}
TOKENS = 300
AFTER_TOKENS = 25
"""Of the first stream, before something happens to it."""
TRIES = 5
"""A move is called off when its stream is nearly over before it begins, as on a busy machine it may be."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveDaemon, LiveDaemon]]:
    """Two nodes that both have the model, loaded."""
    directory = tmp_path_factory.mktemp("unbroken")
    for name in ("near", "far"):
        put_model(directory / name, "m")
    with (
        live_daemon(directory / "near", {**REAL, "node.name": "near"}) as near,
        live_daemon(directory / "far", {**settings_to_join(near), **REAL}) as far,
    ):
        for daemon in (near, far):
            daemon.ask("/sllmd/v1/models/m/load", {"stream": False})
            until(lambda daemon=daemon: card(daemon, "m")["state"] == "serving", "it is loaded")
        yield near, far


def asked(number: int) -> dict[str, object]:
    """The first is greedy, the others are drawn; each has a prompt of its own."""
    drawn = {"temperature": 0.0} if number == 0 else {"temperature": 1.0, "seed": number}
    prompt = list(range(5 + number, 60 + number))
    return {"prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "logprobs": 1, **drawn}


def tokens_of(choice: dict) -> list[str]:
    return list(choice["logprobs"]["tokens"]) if choice.get("logprobs") else []


def unmoved(daemon: LiveDaemon, number: int) -> tuple[str, list[str]]:
    [choice] = daemon.complete("m", **asked(number)).body["choices"]
    return choice["text"], tokens_of(choice)


def streamed(daemon: LiveDaemon, count: int, happens: Callable[[], None]) -> list[tuple[str, list[str]]]:
    """Text and tokens of so many streams at once; ``happens`` when the first is under way."""
    results: list[tuple[str, list[str]]] = [("", [])] * count
    under_way = threading.Barrier(count + 1, timeout=60)

    def read(number: int) -> None:
        text, tokens = "", []
        with daemon.streaming("m", **asked(number)) as pieces:
            for position, piece in enumerate(pieces):
                assert "error" not in piece, piece
                for choice in piece["choices"]:
                    text += choice["text"]
                    tokens += tokens_of(choice)
                if position == AFTER_TOKENS:
                    under_way.wait()
        results[number] = (text, tokens)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(count)]
    for reader in readers:
        reader.start()
    under_way.wait()
    happens()
    for reader in readers:
        reader.join(90)
    return results


@pytest.mark.parametrize("count", [1, 4, 16])
def test_moved_streams_are_the_unmoved_ones(pair, count: int) -> None:
    near, far = pair
    expected = [unmoved(far, number) for number in range(count)]
    moves: list[dict] = []

    def move() -> None:
        before = near if running(near) else far
        to = "far" if before is near else "near"
        moves[:] = near.ask("/sllmd/v1/models/m/migrate", {"to": to}).body["generations"]

    for _ in range(TRIES):
        assert streamed(far, count, move) == expected
        results = [each["move"]["result"] for each in moves]
        assert set(results) <= {"done", "called_off"}
        if "done" in results:
            return
    pytest.fail(f"none moved: {moves}")


def test_a_killed_worker_breaks_no_stream(pair) -> None:
    near, far = pair
    expected = [unmoved(far, number) for number in range(16)]

    def kill() -> None:
        serving = near if running(near) else far
        os.kill(serving.worker_pid("m"), signal.SIGKILL)

    assert streamed(near, 16, kill) == expected


def test_a_killed_node_breaks_no_stream_of_another(pair, tmp_path: Path) -> None:
    near, _far = pair
    expected = [unmoved(near, number) for number in range(16)]
    put_model(tmp_path / "third", "m")
    near.ask("/sllmd/v1/models/m/unload", {})
    third = start(tmp_path / "third", {**settings_to_join(near), **REAL, "node.name": "third"})
    try:
        announced(third)
        until(lambda: "m" in served(third), "it knows the model")
        third.ask("/sllmd/v1/models/m/load", {"stream": False})
        moved = threading.Event()

        def kill() -> None:
            near.ask("/sllmd/v1/models/m/migrate", {"to": "third"})
            moved.set()
            os.kill(third.process.pid, signal.SIGKILL)

        assert streamed(near, 16, kill) == expected
        assert moved.is_set()
    finally:
        for pid in third.family():
            os.kill(pid, signal.SIGKILL)
        third.process.wait()

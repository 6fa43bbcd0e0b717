"""Two daemons, real processes: what a client of one node sees of a model that only the other has."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.live import FAKE, LiveDaemon, announced, live_daemon, put_model, smaps_bytes, start
from tests.waiting import until

pytestmark = pytest.mark.slow

LETTERS = [64, 90]
STEADY = {"token_seconds": 0.01, "token_ids": LETTERS}
MIB = 1 << 20


@pytest.fixture
def near(tmp_path: Path) -> Iterator[LiveDaemon]:
    """The first node of a cluster, with no model but the built-in one."""
    with live_daemon(
        tmp_path / "near", {**FAKE, "node.name": "near", "migration.resume_timeout": "20s"}
    ) as daemon:
        yield daemon


def settings_to_join(near: LiveDaemon, **more: object) -> dict[str, object]:
    [member] = [each for each in near.ask("/sllmd/v1/members").body["members"] if each["is_me"]]
    return {**FAKE, "node.name": "far", "cluster.join": json.dumps([member["address"]]), **more}


@contextmanager
def joined(near: LiveDaemon, directory: Path, *models: str, **settings: object) -> Iterator[LiveDaemon]:
    """A second node that has ``models``, known to the first."""
    with live_daemon(directory, settings_to_join(near, **settings)) as far:
        until(lambda: set(models) <= served(near), "the first node knows the models")
        yield far


def served(daemon: LiveDaemon) -> set[str]:
    cards = daemon.ask("/sllmd/v1/models").body["models"]
    return {card["name"] for card in cards if card["problem"] is None and card["context_tokens"]}


def running(daemon: LiveDaemon) -> int:
    return sum(replica["running"] for replica in daemon.status()["replicas"])


def test_a_client_cannot_tell_where_it_ran_but_by_the_headers(near: LiveDaemon, tmp_path: Path) -> None:
    put_model(tmp_path / "far", "m", {"token_ids": LETTERS})
    with joined(near, tmp_path / "far", "m") as far:
        asked = {"max_tokens": 24, "seed": 7, "logprobs": 2, "n": 3, "echo": True, "stop": ["q"]}
        answers = [node.complete("m", **asked) for node in (near, far)]
        assert [answer.status for answer in answers] == [200, 200]
        assert answers[0].body["choices"] == answers[1].body["choices"]
        for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert answers[0].body["usage"][count] == answers[1].body["usage"][count]
        assert [answer.headers["X-Sllmd-Node"] for answer in answers] == ["near", "far"]
        assert [answer.headers["X-Sllmd-Ran-On"] for answer in answers] == ["far", "far"]
        assert [answer.headers["X-Sllmd-Cold"] for answer in answers] == ["1", "0"]
        assert "load;dur=" in answers[0].headers["Server-Timing"]
        with near.streaming("m", max_tokens=24, seed=7) as pieces:
            streamed = "".join(piece["choices"][0]["text"] for piece in pieces)
        assert streamed == far.complete("m", max_tokens=24, seed=7).body["choices"][0]["text"]
        too_long = near.complete("m", prompt=[65] * 3000, max_tokens=1)
        assert (too_long.status, too_long.error["code"]) == (400, "context_length_exceeded")
        assert near.status()["replicas"] == []
        assert near.requests()[0]["node"] != ""


def test_a_client_that_leaves_frees_the_row_over_there(near: LiveDaemon, tmp_path: Path) -> None:
    put_model(tmp_path / "far", "m", STEADY)
    with joined(near, tmp_path / "far", "m") as far:
        with near.streaming("m", max_tokens=2000, n=2) as pieces:
            next(pieces)
            until(lambda: running(far) == 2, "both run")
        until(lambda: running(far) == 0, "both are cancelled")


def test_the_death_of_the_replicas_node_is_a_pause_where_there_is_another_copy(
    near: LiveDaemon, tmp_path: Path
) -> None:
    for name in ("near", "far"):
        put_model(tmp_path / name, "m", STEADY)
    with joined(near, tmp_path / "far", "m"):
        pass
    put_model(tmp_path / "far", "only", STEADY)
    far = start(tmp_path / "far", {**FAKE, "node.name": "far"})
    asked = {"max_tokens": 300, "seed": 8}
    try:
        announced(far)
        until(lambda: {"only", "m"} <= served(near), "the first node knows the models")
        for model in ("m", "only"):
            assert far.ask(f"/sllmd/v1/models/{model}/load", {}).status == 200
        text = far.complete("m", **asked).body["choices"][0]["text"]
        until(lambda: card(near, "m")["state"] == "serving", "the first node knows the replica")
        with near.streaming("m", **asked) as pieces, near.streaming("only", max_tokens=2000) as lost:
            texts = [next(pieces)["choices"][0]["text"]]
            next(lost)
            assert running(far) == 2
            os.kill(far.process.pid, signal.SIGKILL)
            texts += [piece["choices"][0]["text"] for piece in pieces]
            assert "".join(texts) == text
            *_, last = lost
            assert last["error"]["code"] == "worker_lost"
        assert near.complete("only", max_tokens=1).status == 503
    finally:
        for pid in far.family():
            os.kill(pid, signal.SIGKILL)
        far.process.wait()


def test_a_stream_whose_source_says_nothing_ends_with_an_error(tmp_path: Path) -> None:
    """There is no other place, and nobody else notices."""
    short = {"silence_max": "2s", "stall_min": "1s", "resume_timeout": "1s"}
    settings = {f"migration.{key}": value for key, value in short.items()}
    settings["workers.hang_timeout_seconds"] = "1h"
    put_model(tmp_path / "alone", "m", STEADY)
    with live_daemon(tmp_path / "alone", {**FAKE, **settings}) as alone:
        with alone.streaming("m", max_tokens=2000) as pieces:
            next(pieces)
            os.kill(alone.worker_pid("m"), signal.SIGSTOP)
            *_, last = pieces
        assert last["error"]["code"] == "worker_lost"
        assert "no token came" in last["error"]["message"]


def card(daemon: LiveDaemon, model: str) -> dict[str, object]:
    return daemon.ask(f"/sllmd/v1/models/{model}").body


def test_an_operator_moves_what_runs(near: LiveDaemon, tmp_path: Path) -> None:
    for name in ("near", "far"):
        put_model(tmp_path / name, "m", STEADY)
    asked = {"max_tokens": 800, "seed": 5}
    with joined(near, tmp_path / "far", "m") as far:
        assert far.ask("/sllmd/v1/models/m/load", {}).status == 200  # both have it on disk
        text = far.complete("m", **asked).body["choices"][0]["text"]
        with far.streaming("m", **asked) as pieces:
            texts = [next(pieces)["choices"][0]["text"]]
            # Asked of a node that is not the stream's router.
            answer = near.ask("/sllmd/v1/models/m/migrate", {"to": "near"})
            [moved] = answer.body["generations"]
            assert (moved["move"]["result"], moved["move"]["rounds"] > 0) == ("done", True)
            assert (running(near), running(far)) == (1, 0)
            back = far.ask(f"/sllmd/v1/requests/{moved['request_id']}/migrate", {})
            assert [each["move"]["result"] for each in back.body["generations"]] == ["done"]
            assert (running(near), running(far)) == (0, 1)
            texts += [piece["choices"][0]["text"] for piece in pieces]
        assert "".join(texts) == text
        assert far.requests()[0]["hops"] == 2
        unknown = far.ask("/sllmd/v1/requests/nothing/migrate", {})
        assert (unknown.status, unknown.error["code"]) == (404, "request_not_found")
        nowhere = far.ask("/sllmd/v1/models/m/migrate", {"to": "nobody"})
        assert (nowhere.status, nowhere.error["code"]) == (404, "not_found")
        assert near.ask("/sllmd/v1/models/m/migrate", {"to": "far"}).body == {"generations": []}


def test_the_death_of_the_router_frees_the_row(near: LiveDaemon, tmp_path: Path) -> None:
    put_model(tmp_path / "far", "m", STEADY)
    with joined(near, tmp_path / "far", "m") as far:
        third = settings_to_join_from(far, "third")
        router = start(tmp_path / "third", third)
        try:
            announced(router)
            until(lambda: "m" in served(router), "it knows the model")
            with router.streaming("m", max_tokens=2000) as pieces:
                next(pieces)
                until(lambda: running(far) == 1, "it runs")
                os.kill(router.process.pid, signal.SIGKILL)
                until(lambda: running(far) == 0, "it is cancelled")
                with pytest.raises((AssertionError, OSError)):
                    list(pieces)
        finally:
            for pid in router.family():
                os.kill(pid, signal.SIGKILL)
            router.process.wait()


def settings_to_join_from(member: LiveDaemon, name: str) -> dict[str, object]:
    addresses = [each["address"] for each in member.ask("/sllmd/v1/members").body["members"]]
    return {**FAKE, "node.name": name, "cluster.join": json.dumps(addresses)}


def test_many_streams_that_nobody_reads_cost_little(near: LiveDaemon, tmp_path: Path) -> None:
    """A thousand relayed streams that hardly move: memory stays bounded on the router."""
    count = 1000
    put_model(tmp_path / "far", "m", {"token_seconds": 1.0, "token_ids": LETTERS})
    with joined(
        near, tmp_path / "far", "m", **{"engine.batch_max": count, "serving.queue_max_per_model": count}
    ):
        near.complete("m", max_tokens=1)
        before_bytes = smaps_bytes(near.process.pid, "Rss")
        asyncio.run(hold_streams(near, count))
        until(lambda: not running(near), "nothing runs")
        grown_bytes = smaps_bytes(near.process.pid, "Rss") - before_bytes
        assert grown_bytes < 200 * MIB, f"{grown_bytes / MIB:.0f} MiB"


async def hold_streams(near: LiveDaemon, count: int) -> None:
    body = {"model": "m", "prompt": "hi", "stream": True, "max_tokens": 2000}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def begin() -> aiohttp.ClientResponse:
            response = await session.post(near.url + "/v1/completions", json=body)
            assert response.status == 200
            await response.content.readany()
            return response

        responses = await asyncio.gather(*(begin() for _ in range(count)))
        assert near.complete("tiny", max_tokens=1).status == 200
        for response in responses:
            response.close()

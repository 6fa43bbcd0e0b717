"""The leader frees a device by moving what runs on it: nobody waits for a long stream's end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.live import FAKE, LiveDaemon, live_daemon, put_model
from tests.test_placed import PEERS_ARE_SLOW, address
from tests.test_two_nodes import running, served
from tests.waiting import until

pytestmark = pytest.mark.slow

TOKENS = 2000
LONG = {"token_seconds": 0.015, "token_ids": [64, 90]}
"""Half a minute for all of them."""


def planned(daemon: LiveDaemon) -> str:
    """What the leader would do for the model that is wanted."""
    answer = daemon.ask("/sllmd/v1/models/wanted/plan")
    return answer.body["plan"]["ways"][0]["way"] if answer.status == 200 else ""


def test_a_stream_makes_room_for_a_model_that_only_its_node_has(tmp_path: Path) -> None:
    one_each = {**FAKE, "devices.replicas_max": 1}
    for node, model in (("a", "long"), ("c", "long"), ("a", "wanted")):
        put_model(tmp_path / node, model, LONG)
    with live_daemon(tmp_path / "a", {**one_each, "node.name": "a"}, config=PEERS_ARE_SLOW) as a:
        more = {"node.name": "c", "cluster.join": address(a)}
        with live_daemon(tmp_path / "c", {**one_each, **more}, config=PEERS_ARE_SLOW) as c:
            until(lambda: {"long", "wanted"} <= served(c), "all know the models")
            asked = {"max_tokens": TOKENS, "seed": 4}
            with ThreadPoolExecutor(1) as threads, a.streaming("long", **asked) as pieces:
                texts = [next(pieces)["choices"][0]["text"] for _ in range(100)]
                assert (running(a), running(c)) == (1, 0)
                until(lambda: "make room and load" in planned(c), "the stream's replica is no longer new")
                answering = threads.submit(c.complete, "wanted", max_tokens=1)
                while not answering.done():  # the client goes on reading
                    texts.append(next(pieces)["choices"][0]["text"])
                answer = answering.result()
                assert (answer.status, answer.headers["X-Sllmd-Ran-On"]) == (200, "a"), answer.raw
                assert running(c) == 1, "the stream was moved, and goes on"
                texts += [piece["choices"][0]["text"] for piece in pieces]
            [generation] = a.requests()[:1]
            assert (generation["hops"], generation["moves"][0]["reason"]) == (1, "its device is needed")
            assert "".join(texts) == c.complete("long", **asked).body["choices"][0]["text"]

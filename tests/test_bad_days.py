"""What goes wrong in the life of a server, done to a daemon in a process of its own.

Each test says what a client sees, that the next request is served, and that nothing is left behind (which
``live_daemon`` checks at the end). The fake engine serves where the engine does not matter: its workers are
real processes.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import threading
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sllmd.store.builtin import make_builtin
from sllmd.store.importing import import_checkpoint
from sllmd.store.store import Store
from tests.live import END_SECONDS, FAKE, Answer, LiveDaemon, announced, live_daemon, put_model, start
from tests.store.serving import Manners, serve
from tests.waiting import until

LETTERS = {"token_ids": [64, 64 + 26]}
ENDLESS = LETTERS | {"token_seconds": 3600.0}
"""One token, and then a wait for ever."""
STEADY = LETTERS | {"token_seconds": 0.03}

pytestmark = pytest.mark.slow


class Asking:
    """A request in a thread."""

    def __init__(self, daemon: LiveDaemon, model: str, **fields: object) -> None:
        self._answers: list[Answer] = []
        self._thread = threading.Thread(
            target=lambda: self._answers.append(daemon.complete(model, **fields)), daemon=True
        )
        self._thread.start()

    def answer(self) -> Answer:
        self._thread.join(60)
        [answer] = self._answers
        return answer


def running(daemon: LiveDaemon) -> int:
    return daemon.status()["requests_running"]


# --- workers ---


@pytest.mark.parametrize(("victim", "said"), [("worker", "was killed (SIGKILL)"), ("zygote", "is gone")])
def test_a_killed_worker_costs_its_generations_a_pause_and_nothing_else(
    tmp_path: Path, victim: str, said: str
) -> None:
    put_model(tmp_path, "steady", STEADY)
    asked = {"max_tokens": 150, "seed": 4}
    with live_daemon(tmp_path, FAKE) as daemon:
        text = daemon.complete("steady", **asked).body["choices"][0]["text"]
        with daemon.streaming("steady", **asked) as stream:
            texts = [next(stream)["choices"][0]["text"]]
            whole = Asking(daemon, "steady", **asked)
            until(lambda: running(daemon) == 2, "both run")
            pid = daemon.worker_pid("steady")
            if victim == "zygote":
                [pid] = [p["pid"] for p in daemon.status()["processes"] if p["role"] == "zygote"]
            os.kill(pid, signal.SIGKILL)
            texts += [event["choices"][0]["text"] for event in stream]
        assert "".join(texts) == text
        assert whole.answer().body["choices"][0]["text"] == text
        for request in daemon.requests()[:2]:
            [move] = request["moves"]
            assert (move["kind"], move["result"]) == ("failover", "done")
            assert said in move["reason"]
        assert daemon.copies()["steady"]["loaded"]
        assert 'sllmd_migrations_total{kind="failover",result="done"} 2.0' in metrics(daemon)


def metrics(daemon: LiveDaemon) -> str:
    return daemon.ask("/metrics").raw.decode()


def streamed(daemon: LiveDaemon, model: str, signal_number: int, **fields: object) -> str:
    """The text of a stream whose worker is sent a signal after its first token."""
    with daemon.streaming(model, **fields) as stream:
        texts = [next(stream)["choices"][0]["text"]]
        os.kill(daemon.worker_pid(model), signal_number)
        return "".join(texts + [event["choices"][0]["text"] for event in stream])


def test_a_killed_worker_of_the_real_engine(tmp_path: Path) -> None:
    asked = {"temperature": 0.8, "seed": 3, "max_tokens": 400, "ignore_eos": True}
    with live_daemon(tmp_path, {"engine.dtype": "float32"}) as daemon:
        good = daemon.complete("tiny", **asked).body["choices"][0]["text"]
        assert streamed(daemon, "tiny", signal.SIGKILL, **asked) == good
        assert daemon.copies()["tiny"]["loaded"]
        assert daemon.requests()[0]["hops"] == 1


def test_a_worker_that_hangs_is_noticed_and_replaced(tmp_path: Path) -> None:
    put_model(tmp_path, "steady", STEADY)
    with live_daemon(tmp_path, FAKE | {"workers.hang_timeout_seconds": "5s"}) as daemon:
        assert len(streamed(daemon, "steady", signal.SIGSTOP, max_tokens=40)) == 40
        [move] = daemon.requests()[0]["moves"]
        assert "completed no step for 5 s" in move["reason"]


def test_a_worker_that_is_killed_while_it_builds(tmp_path: Path) -> None:
    put_model(tmp_path, "building", {"build_seconds": 3600.0})
    with live_daemon(tmp_path, FAKE) as daemon:
        asking = Asking(daemon, "building")
        until(lambda: any(r["pid"] for r in daemon.status()["replicas"]), "the replica starts")
        os.kill(daemon.worker_pid("building"), signal.SIGKILL)
        answer = asking.answer()
        assert (answer.status, answer.error["code"]) == (503, "model_load_failed")
        assert "killed (SIGKILL)" in answer.error["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert daemon.complete("tiny", max_tokens=1).status == 200


# --- the daemon ---


def test_a_killed_daemon_leaves_no_process_and_a_sound_store(tmp_path: Path) -> None:
    put_model(tmp_path, "endless", ENDLESS)
    put_model(tmp_path, "building", {"build_seconds": 3600.0})
    killed = start(tmp_path, FAKE)
    announced(killed)
    with killed.streaming("endless") as stream:
        next(stream)
        Asking(killed, "tiny", max_tokens=1).answer()
        killed.process.kill()
        with pytest.raises(AssertionError, match="ended without"):
            next(stream)
    killed.process.wait()
    until(lambda: not killed.family(), "its workers and its zygote end")
    store = Store(killed.store)
    for name in ("endless", "building", "tiny"):
        store.verify(name, lambda *_: None)
    with live_daemon(tmp_path, FAKE) as daemon:  # the socket that the dead one left is no obstacle
        assert daemon.complete("endless", max_tokens=1).status == 200


def test_a_daemon_killed_while_bytes_arrive_loads_them_after_its_next_start(tmp_path: Path) -> None:
    weights = "model.safetensors"
    make_builtin("tiny", tmp_path / "source")
    with serve(tmp_path / "source", manners := Manners()) as url:
        store = Store(tmp_path / "data" / "store")
        import_checkpoint(store, url, name="far", on_progress=lambda _: None)
        manners.silent, headers_read = weights, manners.requests.count(weights)
        killed = start(tmp_path, FAKE)
        announced(killed)

        def ask_in_vain() -> None:
            with suppress(OSError, HTTPException):
                killed.complete("far", max_tokens=1)

        asking = threading.Thread(target=ask_in_vain)
        asking.start()
        until(lambda: manners.requests.count(weights) > headers_read, "the load asks for bytes")
        killed.process.kill()
        killed.process.wait()
        asking.join(60)
        until(lambda: not killed.family(), "its workers and its zygote end")
        assert store.resolve("far").remote_url == url
        manners.silent = ""
        with live_daemon(tmp_path, FAKE) as daemon:
            assert daemon.complete("far", max_tokens=1).status == 200
            until(lambda: store.model("far").kind == "stored", "the bytes are published")
        store.verify("far", lambda *_: None)


def test_sigterm_lets_streams_finish_and_takes_no_new_ones(tmp_path: Path) -> None:
    put_model(tmp_path, "steady", STEADY)
    with live_daemon(tmp_path, FAKE | {"serving.drain_timeout": "100s"}) as daemon:
        with daemon.streaming("steady", max_tokens=200) as stream:
            texts = [next(stream)["choices"][0]["text"]]
            daemon.process.send_signal(signal.SIGTERM)
            until(lambda: daemon.ask("/readyz").status == 503, "it drains")
            refused = daemon.complete("steady", max_tokens=1, stream=True)
            assert (refused.status, refused.error["code"]) == (503, "node_draining")
            assert refused.headers["Retry-After"] == "1"
            texts += [event["choices"][0]["text"] for event in stream]
        assert len("".join(texts)) == 200
        assert daemon.process.wait(END_SECONDS) == 0


def test_a_stream_that_outlasts_the_drain_is_told_and_the_daemon_stops(tmp_path: Path) -> None:
    put_model(tmp_path, "endless", ENDLESS)
    with live_daemon(tmp_path, FAKE | {"serving.drain_timeout": "200ms"}) as daemon:
        with daemon.streaming("endless") as stream:
            next(stream)
            daemon.process.send_signal(signal.SIGTERM)
            [event] = stream
        assert event["error"]["code"] == "worker_lost"
        assert daemon.process.wait(END_SECONDS) == 0


# --- bytes and memory ---


def test_a_damaged_chunk_is_named_put_away_and_never_served(tmp_path: Path) -> None:
    manifest = put_model(tmp_path, "damaged", LETTERS)
    [partition] = manifest.partitions
    [file] = partition.files
    checkpoint = Store(tmp_path / "data" / "store").resolve("damaged")
    path = checkpoint.data_directory / file.path
    with path.open("r+b") as data:
        data.seek(file.size_bytes // 2)
        byte = data.read(1)[0]
        data.seek(file.size_bytes // 2)
        data.write(bytes([byte ^ 1]))
    with live_daemon(tmp_path, FAKE) as daemon:
        answer = daemon.complete("damaged")
        assert (answer.status, answer.error["code"]) == (503, "model_load_failed")
        assert f"checksum mismatch in {file.path}, chunk 0" in answer.error["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert not path.exists()
        assert list((daemon.store / "quarantine").rglob(file.path))
        assert not daemon.copies().get("damaged", {"loaded": False})["loaded"]
        until(lambda: "damaged" not in daemon.copies(), "its memory is given back")
        assert daemon.complete("damaged").status >= 400
        assert daemon.complete("tiny", max_tokens=1).status == 200


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        (
            {"loader.slab_bytes": "64KiB", "loader.dram_budget": "128KiB"},
            "insufficient_capacity",
            "the budget is 131.1 kB",
        ),
        ({"loader.headroom_bytes": "100TB"}, "memory_busy", "the machine has no more"),
    ],
)
def test_not_enough_memory_says_what_is_missing(
    tmp_path: Path, settings: dict[str, str], code: str, said: str
) -> None:
    with live_daemon(tmp_path, FAKE | settings) as daemon:
        answer = daemon.complete("tiny")
        assert (answer.status, answer.error["code"]) == (503, code)
        # Other programs may free memory; the budget stays what it is.
        assert ("x-should-retry" in answer.headers) == (code == "insufficient_capacity")
        assert said in answer.error["message"]
        assert daemon.ask("/healthz").status == 200
        assert daemon.copies() == {}


# --- clients ---


def test_a_thousand_clients_that_hang_up(tmp_path: Path) -> None:
    put_model(tmp_path, "steady", LETTERS | {"token_seconds": 0.005})
    settings = FAKE | {"serving.queue_max_per_model": 2000, "api.access_log": "false"}
    with live_daemon(tmp_path, settings) as daemon:
        assert daemon.complete("steady", max_tokens=1).status == 200
        until(lambda: waiting_workers(daemon) == 2, "the worker that was taken is replaced")
        before = descriptors(daemon.process.pid)
        asyncio.run(come_and_go(daemon, 1000))
        until(lambda: running(daemon) + daemon.status()["requests_waiting"] == 0, "all rows are free")
        until(lambda: descriptors(daemon.process.pid) <= before + 2, "their sockets are closed")
        assert daemon.complete("steady", max_tokens=1).status == 200


def test_clients_that_leave_before_a_short_answer_are_no_error(tmp_path: Path) -> None:
    with live_daemon(tmp_path, FAKE) as daemon:
        address = urlsplit(daemon.url)
        for _ in range(50):
            with socket.create_connection((address.hostname, address.port)) as client:
                client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        counted = 'sllmd_client_disconnects_total{endpoint="/v1/models"}'
        until(lambda: counted in daemon.ask("/metrics").raw.decode(), "they are counted")
        assert not [line for line in daemon.log() if line["level"] == "error" or "exception" in line]


def waiting_workers(daemon: LiveDaemon) -> int:
    return sum(process["role"] == "waiting" for process in daemon.status()["processes"])


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def come_and_go(daemon: LiveDaemon, clients: int) -> None:
    """Some leave before their first token, some after it, some with a reset."""
    address = urlsplit(daemon.url)
    body = b'{"model": "steady", "prompt": "hi", "max_tokens": 2000, "stream": true}'
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    here = asyncio.Semaphore(200)

    async def client(number: int) -> None:
        async with here:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(head + body)
            await writer.drain()
            if number % 5 == 0:
                # Rows come free as others leave, so that everybody's turn comes.
                await asyncio.wait_for(reader.readuntil(b"data: "), 60)
            if number % 2:
                writer.transport.abort()
            else:
                writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))

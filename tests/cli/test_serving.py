"""Commands that talk to a daemon, against a real one in another process."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sllmd.cli.serving import moves_pairs
from tests.cli.conftest import RunCommand, RunningDaemon, command, environment


def test_status_tells_of_moves_and_streams_once_there_are_any() -> None:
    quiet = {"under_way": 0, "moved": 0, "resumed": 0, "called_off": 0, "failed": 0, "pause_ms_max": 0.0}
    alone = {"copies": 0, "late": 0, "alone": 0, "refused": 0, "resumed": 0}
    assert moves_pairs(quiet, alone) == []
    busy = {**quiet, "moved": 3, "called_off": 1, "pause_ms_max": 1200.0}
    assert moves_pairs(busy, {**alone, "copies": 2, "late": 7}) == [
        ("moves", "3 moved, 1 called off, longest pause 1.20 s"),
        ("streams", "2 kept for other nodes, 7 late"),
    ]


def test_load_ps_explain_unload(sllmd: RunCommand, at_daemon: RunningDaemon) -> None:
    loaded = sllmd("load", "tiny")
    assert (loaded.code, loaded.err) == (0, "")
    assert loaded.out.startswith("tiny is ready to answer: ")
    (row,) = json.loads(sllmd("ps", "-o", "json").out)
    assert (row["model"], row["state"]) == ("tiny", "serving")
    head, line = sllmd("ps").out.splitlines()
    assert head.split()[:4] == ["MODEL", "NODE", "DEVICE", "STATE"]
    assert line.split()[0::2][:2] == ["tiny", "cpu:0"]
    assert line.split()[3:5] == ["serving", "device"]
    assert "REPLICA" not in head
    assert "REPLICA" in sllmd("ps", "-o", "wide").out
    assert sllmd("unload", "tiny").out.startswith("tiny: its replica stopped")
    nothing = sllmd("ps")
    assert (nothing.out, nothing.err.startswith("nothing is loaded")) == ("", True)
    assert sllmd("-q", "ps").err == ""
    assert sllmd("ps", "-o", "json").out == "[]\n"


def test_a_copy_in_dram_is_warm_until_it_is_evicted(sllmd: RunCommand, at_daemon: RunningDaemon) -> None:
    assert sllmd("load", "tiny", "--tier", "dram").code == 0
    (row,) = json.loads(sllmd("ps", "-o", "json").out)
    assert (row["state"], row["tier"]) == ("warm", "dram")
    books = json.loads(sllmd("cache", "-o", "json").out)
    assert [copy["model"] for copy in books["copies"]] == ["tiny"]
    head, line = sllmd("cache").out.splitlines()[-2:]
    read = "direct" if books["copies"][0]["direct_io"] else "page cache"
    assert ("READ" in head, line.startswith("tiny"), f" {read} " in line) == (True, True, True)
    assert "freed" in sllmd("cache", "--evict", "tiny").out
    again = sllmd("cache", "--evict", "tiny")
    assert (again.code, again.out) == (4, "")
    assert "tiny is not in DRAM" in again.err
    assert sllmd("cache", "--evict", "tinny").code == 4
    assert json.loads(sllmd("cache", "-o", "json").out)["copies"] == []


@pytest.mark.parametrize("extra", [(), ("--raw",)])
def test_run_streams_an_answer_and_shows_its_time(
    sllmd: RunCommand, at_daemon: RunningDaemon, extra: tuple[str, ...]
) -> None:
    sllmd("unload", "tiny")
    outcome = sllmd("run", "tiny", "Hello", "--max-tokens", "6", "--seed", "1", "--timings", *extra)
    assert outcome.code == 0
    assert outcome.out.strip()
    assert "COLD from ssd" in outcome.err
    assert "6 tokens" in outcome.err
    last = json.loads(sllmd("explain", "-o", "json").out)["generations"][0]
    assert (last["model"], last["completion_tokens"]) == ("tiny", 6)
    assert "warm" in sllmd("run", "tiny", "Hello", "--max-tokens", "2", "--timings", *extra).err
    assert "decode" in sllmd("explain").out


def test_run_as_json_is_the_api_s_answer(sllmd: RunCommand, at_daemon: RunningDaemon) -> None:
    outcome = sllmd("run", "tiny", "Hello", "--max-tokens", "3", "-o", "json")
    assert json.loads(outcome.out)["usage"]["completion_tokens"] == 3


def test_run_reads_standard_input(at_daemon: RunningDaemon) -> None:
    result = subprocess.run(
        command("--addr", at_daemon.address, "run", "tiny", "--max-tokens", "3"),
        input="Hello", env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


@pytest.mark.parametrize("said", ["", " \n"])
def test_nothing_to_ask_is_2(said: str) -> None:
    result = subprocess.run(
        command("run", "tiny"),
        input=said, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (2, "")
    assert "nothing to ask" in result.stderr


def test_a_copy_in_use_is_not_evicted_and_says_so(sllmd: RunCommand, at_daemon: RunningDaemon) -> None:
    assert sllmd("run", "tiny", "x", "--max-tokens", "1", "--keep-alive", "-1").code == 0
    head, line = sllmd("ps").out.splitlines()
    assert line[head.index("UNTIL") :] == "for ever"
    refused = sllmd("cache", "--evict", "tiny")
    assert refused.code == 7
    assert "tiny is in use" in refused.err
    assert sllmd("unload", "tiny").code == 0
    assert json.loads(sllmd("cache", "-o", "json").out)["reserve_bytes"] > 0
    assert "more kept in reserve" in sllmd("status").out


def test_an_answer_that_finds_no_end_is_cut_off_and_says_so(
    sllmd: RunCommand, at_daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sllmd.cli.run.ANSWER_TOKENS_MAX", 5)
    assert "cut off after 5 tokens; --max-tokens allows more" in sllmd("run", "tiny", "x").err
    assert "cut off" not in sllmd("run", "tiny", "x", "--max-tokens", "5").err
    monkeypatch.setattr("sllmd.cli.run.ANSWER_TOKENS_MAX", 2000)
    full = sllmd("run", "tiny", "x" * 2000)
    assert full.code == 0
    assert "the model's context is full" in full.err


def test_a_prompt_over_the_context_is_2(sllmd: RunCommand, at_daemon: RunningDaemon) -> None:
    assert sllmd("run", "tiny", "x" * 5000).code == 2


def test_status(sllmd: RunCommand, at_daemon: RunningDaemon) -> None:
    text = sllmd("status").out
    assert "ready" in text
    assert str(at_daemon.directory / "store") in text
    node = json.loads(sllmd("status", "-o", "jsonl").out)
    assert (node["state"], node["models"]) == ("ready", 1)
    (process,) = node["processes"]
    assert (process["role"], process["pid"]) == ("daemon", at_daemon.process.pid)
    assert 0 < process["anonymous_bytes"] < process["rss_bytes"]
    assert f"daemon, pid {at_daemon.process.pid}, " in text


def test_store_commands_use_the_daemon_s_store(sllmd: RunCommand, at_daemon: RunningDaemon) -> None:
    assert [row["name"] for row in json.loads(sllmd("list", "-o", "json").out)] == ["tiny"]
    assert sllmd("alias", "small", "tiny").code == 0
    assert sllmd("run", "small", "x", "--max-tokens", "1").code == 0
    assert sllmd("rm", "small").code == 0
    assert sllmd("run", "small", "x").code == 4


def test_the_store_is_the_configured_daemon_s_unless_one_is_configured(
    sllmd: RunCommand, daemon: RunningDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLLMD_API__UDS", daemon.address.removeprefix("unix:"))
    verified = sllmd("verify", "tiny")
    assert verified.code == 0
    assert f"store: {daemon.directory}/store (of the daemon at {daemon.address})" in verified.err
    assert sllmd("-q", "verify", "tiny").err == ""
    monkeypatch.setenv("SLLMD_NODE__DATA_DIR", str(tmp_path / "own"))
    listed = sllmd("list")
    assert listed.out == ""
    assert f"store: {tmp_path}/own/store (configured; the daemon at" in listed.err
    monkeypatch.setenv("SLLMD_NODE__DATA_DIR", str(daemon.directory))
    assert sllmd("list").err == ""


@pytest.mark.parametrize(
    "arguments", [("load", "tinny"), ("unload", "tinny"), ("run", "tinny", "x"), ("show", "tinny")]
)
def test_an_unknown_model_is_4(
    sllmd: RunCommand, at_daemon: RunningDaemon, arguments: tuple[str, ...]
) -> None:
    outcome = sllmd(*arguments)
    assert (outcome.code, outcome.out) == (4, "")
    assert "tinny" in outcome.err
    assert "Did you mean `tiny`?" in outcome.err


def test_an_unknown_request_is_4(sllmd: RunCommand, at_daemon: RunningDaemon) -> None:
    assert sllmd("explain", "req_nothing").code == 4


def test_a_refused_value_is_2(sllmd: RunCommand, at_daemon: RunningDaemon) -> None:
    outcome = sllmd("run", "tiny", "x", "--temperature", "99")
    assert outcome.code == 2
    assert "temperature" in outcome.err


@contextmanager
def daemon_that_says(*events: object) -> Iterator[str]:
    """The address of one that answers every POST with these events."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events))

        def log_message(self, *_: object) -> None:
            """Silence."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("code", "expected"),
    [("startup_timeout", 5), ("queue_full", 5), ("model_load_failed", 1), (None, 1)],
)
def test_a_load_that_fails_for_now_is_5(sllmd: RunCommand, code: str | None, expected: int) -> None:
    step = {"model": "m", "stage": "waiting", "current_bytes": 0, "total_bytes": 9}
    last = step | {"status": "error", "message": "the cause", "code": code}
    with daemon_that_says(step | {"status": "loading"}, last) as address:
        outcome = sllmd("--addr", address, "load", "m")
    assert (outcome.code, outcome.out) == (expected, "")
    assert "m: the cause" in outcome.err


def test_a_stream_that_ends_busy_is_5(sllmd: RunCommand) -> None:
    error = {"message": "the cause", "type": "server_error", "param": "model", "code": "startup_timeout"}
    with daemon_that_says({"error": error}) as address:
        outcome = sllmd("--addr", address, "run", "m", "Hello")
    assert outcome.code == 5
    assert "the cause" in outcome.err


def test_tcp_works_like_the_socket(sllmd: RunCommand, at_daemon: RunningDaemon) -> None:
    node = json.loads(sllmd("status", "-o", "json").out)
    (url,) = (address for address in node["listen"] if address.startswith("http"))
    assert sllmd("--addr", url, "ps").code == 0
    assert sllmd("ps", "--addr", url.removeprefix("http://")).code == 0


def test_bars_are_for_terminals(at_daemon: RunningDaemon) -> None:
    """On a terminal's standard error there is a bar; a pipe gets nothing but the result."""
    master, slave = pty.openpty()
    try:
        result = subprocess.run(
            command("--addr", at_daemon.address, "load", "tiny"),
            env=environment(TERM="xterm"), stdout=subprocess.PIPE, stderr=slave, timeout=60, check=True,
        )  # fmt: skip
        os.close(slave)
        drawn = b""
        while chunk := _read(master):
            drawn += chunk
    finally:
        os.close(master)
    assert b"\x1b[" in drawn
    assert b"tiny" in drawn
    assert b"\x1b" not in result.stdout


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux says EIO when the other side of a terminal is gone
        return b""


def test_a_talk_on_a_terminal(at_daemon: RunningDaemon) -> None:
    """Without a prompt, on a terminal: asks, answers, explains, forgets, asks again, ends at /bye."""
    master, slave = pty.openpty()
    try:
        talk = subprocess.Popen(
            command("--addr", at_daemon.address, "--quiet", "run", "tiny", "--max-tokens", "4"),
            env=environment(TERM="dumb"), stdin=slave, stdout=slave, stderr=slave,
        )  # fmt: skip
        os.close(slave)
        os.write(master, b"Hello\n/help\n/clear\n/bye\n")
        seen = b""
        while chunk := _read(master):
            seen += chunk
        assert talk.wait(timeout=60) == 0
    finally:
        os.close(master)
    assert seen.count(b">>> ") == 4
    assert b"/clear forgets" in seen

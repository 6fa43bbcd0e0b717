"""``sllmd start`` as systemd or a person runs it: starts, tells so, stops in time, or says what is wrong."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sllmd.cli.client import Address, Client
from sllmd.cli.start import flag_values
from sllmd.core.errors import InvalidRequest, SllmdError
from tests.cli.conftest import FAKE_ENGINE, RunCommand, command, environment


def test_a_life_under_systemd(tmp_path: Path) -> None:
    """READY once it serves, WATCHDOG from the loop, STOPPING on SIGTERM; exit code 0; no socket left."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        daemon = subprocess.Popen(
            command("start", "--data-dir", tmp_path, "--listen", "127.0.0.1:0", "--uds", tmp_path / "s.sock",
                    "--set", "devices.backend=cpu", *FAKE_ENGINE),
            env=environment(
                NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="100000", XDG_CONFIG_HOME="/nowhere"
            ),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert b"READY=1" in manager.recv(4096)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "s.sock"))
            while b"WATCHDOG=1" not in manager.recv(4096):
                pass
            daemon.send_signal(signal.SIGTERM)
            while b"STOPPING=1" not in manager.recv(4096):
                pass
            _, said = daemon.communicate(timeout=60)
        finally:
            daemon.kill()
            daemon.wait()
    assert daemon.returncode == 0, said
    assert not (tmp_path / "s.sock").exists()


@pytest.mark.slow
def test_ctrl_c_twice_ends_what_runs_with_a_word(tmp_path: Path) -> None:
    """The stream that would outlast the drain is told, the process says one line and exits with 130."""
    socket_path = tmp_path / "s.sock"
    daemon = subprocess.Popen(
        command("start", "--dev", "--data-dir", tmp_path, "--listen", "127.0.0.1:0", "--uds", socket_path,
                "--set", "serving.drain_timeout=5m", "--set", "workers.fake.token_seconds=0.2", *FAKE_ENGINE),
        env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        client = Client(Address(socket_path=str(socket_path)))
        while not client.answers():
            assert daemon.poll() is None
        body = {"model": "tiny", "prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        stream = client.stream("/v1/completions", body)
        next(stream)
        daemon.send_signal(signal.SIGINT)
        while client.get("/sllmd/v1/status")["state"] != "draining":
            pass
        daemon.send_signal(signal.SIGINT)
        with pytest.raises(SllmdError, match="is gone"):
            list(stream)
        _, said = daemon.communicate(timeout=60)
    finally:
        daemon.kill()
        daemon.wait()
    assert daemon.returncode == 130, said
    assert said.splitlines()[-1] == "stopped at once"
    assert "Traceback" not in said


def start(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("start", "--dev", "--data-dir", tmp_path / "data", "--uds", tmp_path / "s.sock", *FAKE_ENGINE,
                *arguments),
        env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        data = tmp_path / "data"
        result = start(tmp_path, "--listen", f"127.0.0.1:{port}", "--data-dir", str(data))
    assert result.returncode == 6
    assert not data.exists()
    assert "cluster founded" not in result.stderr
    assert str(port) in result.stderr
    assert "--listen" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_data_directory_that_cannot_be(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = start(tmp_path, "--data-dir", str(blocked / "below"))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def test_a_data_directory_that_cannot_be_written(tmp_path: Path) -> None:
    result = start(tmp_path, "--data-dir", "/proc/sllmd")
    assert result.returncode == 1
    assert "cannot create the data directory" in result.stderr
    assert "/proc/sllmd" in result.stderr
    assert "ready in" not in result.stderr


def test_an_unknown_key(sllmd: RunCommand) -> None:
    outcome = sllmd("start", "--set", "serving.keep_alve=1")
    assert outcome.code == 2
    assert "--set serving.keep_alve: unknown key `serving.keep_alve`; did you mean" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("start", "--listen", "banana"),
        ("token", "create", "--ttl", "banana"),
        ("drain", "--deadline", "banana"),
        ("leave", "--drain", "banana"),
        ("events", "--since", "banana"),
        ("status", "--wait", "banana"),
    ],
)
def test_a_bad_value_of_an_option_is_2(sllmd: RunCommand, arguments: tuple[str, ...]) -> None:
    outcome = sllmd(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert "banana" in outcome.err


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "token"
    result = start(tmp_path, "--set", f"cluster.token_file={file}")
    assert result.returncode == 6
    assert f"sllmd token create --file {file}" in result.stderr


def test_a_file_that_is_wrong_without_the_flags_too_is_6(sllmd: RunCommand, tmp_path: Path) -> None:
    file = tmp_path / "sllmd.toml"
    file.write_text("[serving]\nkeep_alve = 1\n")
    assert sllmd("start", "--config", str(file), "--name", "a").code == 6


@pytest.mark.parametrize("assignment", ["serving", "keep_alive=1", "=1"])
def test_a_malformed_assignment(assignment: str) -> None:
    with pytest.raises(InvalidRequest, match="not SECTION"):
        flag_values({}, [assignment])


def test_the_version_is_told_without_what_only_a_daemon_needs() -> None:
    """Or it would take seconds."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command("--version")[1:]],
        env=environment(), check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "sllmd" in imported
    assert not imported & {"torch", "transformers", "numpy", "aiohttp", "pydantic", "typer", "uvloop"}

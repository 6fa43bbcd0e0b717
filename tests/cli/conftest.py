"""Runs of the command line, in this process, and a daemon that ``sllmd start`` started in another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import structlog

from sllmd.cli.app import main

FAKE_ENGINE = ("--set", "workers.engine=fake", "--set", "workers.in_process=true")
START_SECONDS = "60s"


@dataclass(frozen=True)
class Outcome:
    """What one run left behind."""

    code: int
    out: str
    err: str


RunCommand = Callable[..., Outcome]


@pytest.fixture
def sllmd(capfd: pytest.CaptureFixture[str]) -> RunCommand:
    """``sllmd("ps", "-o", "json")``."""

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code or 0
        else:
            code = 0
        assert isinstance(code, int)
        return Outcome(code, *capfd.readouterr())

    return run


def command(*arguments: str | Path) -> list[str]:
    """The command line as another process."""
    return [sys.executable, "-m", "sllmd", *(str(argument) for argument in arguments)]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without anybody's sllmd settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLLMD_")} | changes


@dataclass(frozen=True)
class RunningDaemon:
    """A daemon in another process, and where it is."""

    process: subprocess.Popen[str]
    address: str
    directory: Path


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """``sllmd start --dev`` with the fake engine; it has the built-in model."""
    directory = tmp_path_factory.mktemp("cli")
    socket_path = directory / "s.sock"
    process = subprocess.Popen(
        command("start", "--dev", "--data-dir", directory, "--listen", "127.0.0.1:0", "--uds", socket_path,
                *FAKE_ENGINE),
        env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        subprocess.run(
            command("--addr", f"unix:{socket_path}", "status", "--wait", START_SECONDS),
            env=environment(), check=True, capture_output=True, timeout=90,
        )  # fmt: skip
        yield RunningDaemon(process, f"unix:{socket_path}", directory)
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said


@pytest.fixture
def at_daemon(daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch) -> RunningDaemon:
    """The daemon, found by the commands of this test."""
    monkeypatch.setenv("SLLMD_ADDR", daemon.address)
    return daemon


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith("SLLMD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path / "etc"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    # Said, so that no daemon of this machine is found by its port.
    monkeypatch.setenv("SLLMD_API__UDS", str(tmp_path / "run" / "sllmd.sock"))
    yield
    structlog.reset_defaults()

"""The exit codes: the table is whole, told where people look, and what commands do."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from sllmd.cli.client import DaemonUnreachable, KeyRefused, error_of
from sllmd.cli.exits import EXITS, exit_code
from sllmd.core import errors
from sllmd.core.errors import SllmdError
from tests.cli.conftest import RunCommand, RunningDaemon

README = Path(__file__).parents[2] / "README.md"

BY_ERROR = {
    "SllmdError": 1,
    "StoreError": 1,
    "ChecksumMismatch": 1,
    "OutcomeUnknown": 1,
    "ModelLoadFailed": 1,
    "InsufficientCapacity": 1,
    "InvalidRequest": 2,
    "UnsupportedParameter": 2,
    "ContextLengthExceeded": 2,
    "ModelNotFound": 4,
    "RecordNotFound": 4,
    "PathNotFound": 4,
    "QueueFull": 5,
    "ControlUnavailable": 5,
    "ConfigError": 6,
    "InvalidApiKey": 7,
    "Conflict": 7,
    "PeerRefused": 7,
}


@pytest.mark.parametrize(("name", "code"), BY_ERROR.items())
def test_what_each_error_ends_with(name: str, code: int) -> None:
    assert exit_code(_made(getattr(errors, name))) == code


def test_every_error_has_a_code() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, SllmdError)]
    assert {exit_code(_made(kind)) for kind in [*kinds, DaemonUnreachable, KeyRefused]} == {
        1,
        2,
        3,
        4,
        5,
        6,
        7,
    }


def _made(kind: type[SllmdError]) -> SllmdError:
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "invalid_value", 2),
        (400, "context_length_exceeded", 2),
        (401, "invalid_api_key", 7),
        (403, "insufficient_scope", 7),
        (404, "model_not_found", 4),
        (404, "not_found", 4),
        (409, "conflict", 7),
        (429, "rate_limit_exceeded", 5),
        (500, "internal_error", 1),
        (503, "queue_full", 5),
        (503, "startup_timeout", 5),
        (503, "model_load_failed", 1),
        (503, "insufficient_capacity", 1),
        (500, "startup_timeout", 5),
        (500, "queue_full", 5),
        (500, "memory_busy", 5),
        (500, "worker_lost", 5),
        (500, "model_not_found", 4),
        (500, "model_load_failed", 1),
    ],
)
def test_answers_become_exit_codes(status: int, code: str, expected: int) -> None:
    error = error_of(status, {"error": {"message": "the cause", "code": code, "param": None}}, "7")
    assert (exit_code(error), error.message) == (expected, "the cause")


def test_the_table_is_told(sllmd: RunCommand) -> None:
    told = " ".join(README.read_text().split())
    assert [row for row in EXITS if f"| {row.code} | {row.means} |" not in told] == []
    helped = " ".join(sllmd("--help").out.split())
    assert [row for row in EXITS if f"{row.code} {row.means}" not in helped] == []


WRONG = [
    ("nonsense", 2),
    ("ps --nonsense", 2),
    ("load", 2),
    ("ps -o xml", 2),
    ("--addr ftp://x ps", 2),
    ("status --wait soon", 2),
    ("simulate --policy best", 2),
    ("import {tmp}/m --name a..b", 2),
    ("import {tmp}/none", 4),
    ("simulate --trace {tmp}/none", 4),
    ("config check {tmp}/none", 4),
    ("start --config {tmp}/none", 4),
    ("recover --force-new-cluster --data-dir {tmp}/none", 4),
    ("show none --store {tmp}/store", 4),
    ("rm none --store {tmp}/store", 4),
    ("verify none --store {tmp}/store", 4),
    ("alias a none --store {tmp}/store", 4),
    ("--addr unix:{tmp}/none ps", 3),
    ("config check {tmp}/wrong.toml", 6),
    ("start --config {tmp}/wrong.toml", 6),
    ("config init {tmp}/wrong.toml", 7),
    ("token keyfile {tmp}/wrong.toml", 7),
]


@pytest.mark.parametrize(("typed", "code"), WRONG, ids=[typed for typed, _ in WRONG])
def test_without_a_daemon(sllmd: RunCommand, tmp_path: Path, typed: str, code: int) -> None:
    (tmp_path / "wrong.toml").write_text("[api]\nlistn = 1\n")
    outcome = sllmd(*typed.format(tmp=tmp_path).split())
    assert (outcome.code, outcome.out) == (code, "")
    assert re.match(r"sllmd: \S|Usage: ", outcome.err)


WRONG_AT_A_DAEMON = [
    ("show none", 4),
    ("load none", 4),
    ("unload none", 4),
    ("run none hello", 4),
    ("cache --evict none", 4),
    ("cache --evict tiny", 4),
    ("explain none", 4),
    ("migrate none", 4),
    ("drain none", 4),
    ("undrain none", 4),
    ("node rm none", 4),
    ("keys revoke none", 4),
    ("rm none", 4),
    ("alias tiny tiny", 7),
    ("alias a..b tiny", 2),
    ("keys create a/b", 2),
    ("run tiny hello --keep-alive soon", 2),
    ("--api-key nobody ps", 0),
]


@pytest.mark.parametrize(("typed", "code"), WRONG_AT_A_DAEMON, ids=[typed for typed, _ in WRONG_AT_A_DAEMON])
@pytest.mark.usefixtures("at_daemon")
def test_at_a_daemon(sllmd: RunCommand, typed: str, code: int) -> None:
    outcome = sllmd(*typed.split())
    assert outcome.code == code, outcome


def test_a_misspelt_variable_is_a_configuration_that_cannot_be_used(
    sllmd: RunCommand, at_daemon: RunningDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLLMD_ADRR", at_daemon.address)
    outcome = sllmd("ps")
    assert outcome.code == 6
    assert "SLLMD_ADDR?" in outcome.err

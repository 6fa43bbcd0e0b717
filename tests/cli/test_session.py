"""Addresses, exit codes, output formats: what all commands share."""

from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

from sllmd.cli.app import app
from sllmd.cli.client import Address, _reason, error_of, parse_address
from sllmd.cli.place import configured_address
from sllmd.cli.session import keyless_hint
from sllmd.cli.tables import Column, as_json, fields, table
from sllmd.config.loading import load_config
from sllmd.core.errors import InvalidRequest
from tests.cli.conftest import RunCommand, RunningDaemon, command, environment


def commands() -> dict[str, Any]:
    """Every command, by what one types."""
    tree: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name in tree.list_commands(None):
        _, each, _ = tree.resolve_command(None, [name])
        below = getattr(each, "commands", None)
        found |= {name: each} if below is None else {f"{name} {key}": one for key, one in below.items()}
    return found


COMMANDS = commands()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("unix:/a/b.sock", Address(socket_path="/a/b.sock")),
        ("unix:///a/b.sock", Address(socket_path="/a/b.sock")),
        ("/a/b.sock", Address(socket_path="/a/b.sock")),
        ("box", Address(host="box")),
        ("box:80", Address(host="box", port=80)),
        ("http://box:80/", Address(host="box", port=80)),
        ("https://box", Address(host="box", port=443, tls=True)),
        ("[::1]:80", Address(host="::1", port=80)),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["ftp://box", "box:port", "http://", "box:99999"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no address"):
        parse_address(text)


def address_with(**variables: str) -> Address:
    return configured_address(load_config(environ=variables))


def test_the_configuration_says_where_the_daemon_is(tmp_path: Path) -> None:
    assert address_with(SLLMD_API__UDS="/a.sock", SLLMD_API__LISTEN="box:1").socket_path == "/a.sock"
    assert address_with(SLLMD_API__LISTEN="box:1,box:2") == Address(host="box", port=1)
    assert address_with(SLLMD_API__LISTEN="0.0.0.0:1") == Address(port=1)
    assert address_with(SLLMD_API__LISTEN='["[::]:1"]') == Address(host="::1", port=1)
    assert address_with(SLLMD_API__LISTEN="[]").socket_path == str(tmp_path / "run" / "sllmd.sock")
    assert address_with() in (Address(), Address(socket_path="/run/sllmd/sllmd.sock"))
    file = tmp_path / "other.toml"
    file.write_text('[api]\nuds = "/b.sock"\n')
    assert address_with(SLLMD_CONFIG=str(file)).socket_path == "/b.sock"


def test_the_socket_of_this_user_comes_before_the_port(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run / "sllmd.sock"))
        assert address_with() == Address(socket_path=str(run / "sllmd.sock"))


@contextmanager
def listening(path: Path) -> Iterator[None]:
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield


def test_the_only_node_of_this_machine_is_found_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sllmd.cli.place.SYSTEM_SOCKET", tmp_path / "system" / "sllmd.sock")
    one, two = tmp_path / "run" / "one.sock", tmp_path / "run" / "two.sock"
    with listening(one):
        assert address_with() == Address(socket_path=str(one))
        assert address_with(SLLMD_API__LISTEN="box:1") == Address(host="box", port=1)
        with listening(two):
            assert address_with() == Address()
            assert f"--addr unix:{one} or --addr unix:{two}" in keyless_hint()
        assert address_with() == Address(socket_path=str(one)), "nobody listens on the other any more"
    assert keyless_hint() == ""


def test_an_unknown_host_is_told_as_a_name() -> None:
    assert _reason(socket.gaierror(socket.EAI_NONAME, "x")) == "that name is not known"
    assert _reason(socket.gaierror(socket.EAI_AGAIN, "busy")) == "busy"


def test_an_answer_without_an_envelope() -> None:
    assert "502" in error_of(502, "<html>", None).message


@pytest.mark.parametrize("name", ["ps", "status", "cache", "explain", "load x", "unload x", "run x y"])
def test_no_daemon_is_3(sllmd: RunCommand, tmp_path: Path, name: str) -> None:
    outcome = sllmd("--addr", f"unix:{tmp_path}/none.sock", *name.split())
    assert (outcome.code, outcome.out) == (3, "")
    assert "sllmd start" in outcome.err


def test_waiting_for_a_daemon_ends(sllmd: RunCommand, tmp_path: Path) -> None:
    assert sllmd("--addr", f"unix:{tmp_path}/none.sock", "status", "--wait", "10ms").code == 3


@pytest.mark.parametrize(("typed", "meant"), [("lst", "list"), ("stat", "start"), ("xylophone", None)])
def test_a_command_that_is_none_is_told_its_neighbour(
    sllmd: RunCommand, typed: str, meant: str | None
) -> None:
    outcome = sllmd(typed)
    assert outcome.code == 2
    assert ("Did you mean" in outcome.err) == (meant is not None)
    assert meant is None or f"'{meant}'" in outcome.err


def test_help_lists_every_command(sllmd: RunCommand) -> None:
    out = sllmd("--help").out
    assert {"token create", "config init", "ps"} <= COMMANDS.keys()
    assert [name for name in COMMANDS if f" {name.split()[0]} " not in out] == []


@pytest.mark.parametrize("name", ["ps", "token create", "config show"])
def test_help(sllmd: RunCommand, name: str) -> None:
    outcome = sllmd(*name.split(), "--help")
    assert outcome.code == 0
    assert "--output" in outcome.out


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_has_the_shared_options_and_help_that_is_shown_as_written(command: Any) -> None:
    assert command.help
    assert {"output", "addr", "api_key", "quiet", "no_color"} <= {each.name for each in command.params}
    texts = [command.help, *(getattr(each, "help", None) or "" for each in command.params)]
    for text in texts:
        assert Text.from_markup(text).plain == text


def test_options_may_stand_before_or_behind_the_command(sllmd: RunCommand) -> None:
    before, behind = sllmd("-o", "json", "version"), sllmd("version", "-o", "json")
    assert before.out == behind.out
    assert json.loads(before.out)["version"]


def test_who_has_seen_enough_ends_a_command_quietly() -> None:
    """As `| head -1` does, from before the command has anything to print."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command("config", "init"),
        env=environment(), stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("variables", "options", "colored"),
    [
        ({}, (), True),
        ({"NO_COLOR": ""}, (), True),
        ({"NO_COLOR": "1"}, (), False),
        ({"TERM": "dumb"}, (), False),
        ({}, ("--no-color",), False),
    ],
)
def test_colour_is_for_terminals_that_want_it(
    variables: dict[str, str], options: tuple[str, ...], colored: bool
) -> None:
    wanted = {"TERM": "xterm", **variables}
    shown = on_a_terminal("config", "check", "/no/such/file", *options, variables=wanted)
    assert "/no/such/file" in shown
    assert ("\033[" in shown) == colored


def on_a_terminal(*arguments: str, variables: dict[str, str]) -> str:
    """What a command that fails writes to its terminal."""
    ours, theirs = pty.openpty()
    plain = {name: value for name, value in environment().items() if name not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen(command(*arguments), env=plain | variables, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # its other end is closed
        pass
    os.close(ours)
    assert process.wait(60) != 0
    return shown.decode()


ROWS = [{"name": "a", "size": 5}, {"name": "模型", "size": 12345}]
COLUMNS = (
    Column("NAME", lambda row: row["name"]),
    Column("SIZE", lambda row: str(row["size"]), right=True),
    Column("MORE", lambda _: "x", wide=True),
)


def test_tables_are_aligned_by_what_is_seen() -> None:
    assert table(ROWS, COLUMNS, wide=False) == "NAME    SIZE\na          5\n模型   12345\n"
    assert table(ROWS, COLUMNS, wide=True).splitlines()[1] == "a          5   x"


def test_fields_are_aligned() -> None:
    assert fields([("a", "1"), ("long", "2")]) == "a     1\nlong  2"


def test_fields_too_long_for_the_terminal_go_on_below() -> None:
    shown = fields([("why", "it is dead for 10 s"), ("", "/a/very/long/path x"), ("no", "")], width=16)
    assert shown.splitlines() == [
        "why  it is dead",
        "     for 10 s",
        "     /a/very/long/path",
        "     x",
        "no",
    ]


def test_json_and_json_lines() -> None:
    assert json.loads(as_json(ROWS, lines=False)) == ROWS
    assert [json.loads(line) for line in as_json(ROWS, lines=True).splitlines()] == ROWS


def test_an_address_before_the_command_comes_before_the_environments(
    sllmd: RunCommand, at_daemon: RunningDaemon
) -> None:
    for arguments in (("--addr", "unix:/nowhere", "ps"), ("ps", "--addr", "unix:/nowhere")):
        outcome = sllmd(*arguments)
        assert outcome.code == 3
        assert "unix:/nowhere" in outcome.err
    assert sllmd("ps").code == 0

"""``sllmd config``."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import RunCommand


def test_check_is_quiet_about_good_and_precise_about_bad(sllmd: RunCommand, tmp_path: Path) -> None:
    file = tmp_path / "sllmd.toml"
    file.write_text('[serving]\nkeep_alive = "1m"\n')
    assert sllmd("config", "check", str(file)).code == 0
    assert str(file) in sllmd("config", "check", "--config", str(file)).out
    assert sllmd("config", "check", str(file), "--config", str(file)).code == 2
    file.write_text('[serving]\nkeep_alife = "1m"\n')
    outcome = sllmd("config", "check", str(file))
    assert (outcome.code, outcome.out) == (6, "")
    assert f"{file}:2: unknown key `serving.keep_alife`; did you mean `serving.keep_alive`?" in outcome.err


def test_check_refuses_what_start_would_refuse(sllmd: RunCommand, tmp_path: Path) -> None:
    file = tmp_path / "sllmd.toml"
    file.write_text('[models.m]\nsource = "/no/such/place"\n')
    outcome = sllmd("config", "check", str(file))
    assert outcome.code == 6
    assert "/no/such/place does not exist" in outcome.err


def test_show(sllmd: RunCommand, tmp_path: Path) -> None:
    file = tmp_path / "sllmd.toml"
    file.write_text("[serving]\nqueue_max_per_model = 3\n")
    shown = sllmd("config", "show", str(file), "--origin")
    assert tomllib.loads(shown.out)["serving"]["queue_max_per_model"] == 3
    assert f"# {file}:2" in shown.out
    assert (
        json.loads(sllmd("config", "show", str(file), "-o", "json").out)["serving"]["queue_max_per_model"]
        == 3
    )
    assert tomllib.loads(sllmd("config", "show", "--dev").out)["models"]["tiny"]["source"] == "builtin:tiny"


def test_for_ever_is_minus_one_in_json(sllmd: RunCommand, tmp_path: Path) -> None:
    file = tmp_path / "sllmd.toml"
    file.write_text("[serving]\nkeep_alive = -1\n[models.m]\nkeep_alive = -1\n")
    shown = sllmd("config", "show", str(file), "-o", "json").out
    values = json.loads(shown, parse_constant=lambda name: f"no JSON: {name}")
    assert values["serving"]["keep_alive"] == values["models"]["m"]["keep_alive"] == -1


def test_schema_is_json(sllmd: RunCommand) -> None:
    assert "serving" in json.loads(sllmd("config", "schema").out)["properties"]


def test_init_writes_once(sllmd: RunCommand, tmp_path: Path) -> None:
    written = tmp_path / "etc" / "sllmd.toml"
    refused = sllmd("config", "init", str(written))
    assert (refused.code, written.parent.exists()) == (4, False)
    assert f"{written.parent} does not exist" in refused.err
    written.parent.mkdir()
    assert sllmd("config", "init", str(written)).code == 0
    assert sllmd("config", "check", str(written)).code == 0
    assert sllmd("config", "init", str(written)).code == 7
    written.write_text("")
    assert sllmd("config", "init", str(written), "--force").code == 0
    assert written.read_text()


def test_init_without_a_file_writes_none(sllmd: RunCommand, tmp_path: Path) -> None:
    assert "serving" in tomllib.loads(sllmd("config", "init").out)
    assert not (tmp_path / "etc").exists()
    assert "serving" in tomllib.loads(json.loads(sllmd("config", "init", "-o", "json").out)["toml"])


def test_check_looks_for_the_models_it_would_import(sllmd: RunCommand, tmp_path: Path) -> None:
    file = tmp_path / "sllmd.toml"
    file.write_text('[models.tiny]\nsource = "/nowhere"\n')
    outcome = sllmd("config", "check", str(file))
    assert outcome.code == 6
    assert f"{file}:2: `models.tiny.source`: /nowhere does not exist" in outcome.err
    assert sllmd("import", "builtin:tiny").code == 0
    assert sllmd("config", "check", str(file)).code == 0


def test_check_says_what_was_read(sllmd: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLLMD_LOG__LEVEL", "debug")
    assert "(no file, SLLMD_API__UDS, SLLMD_LOG__LEVEL)" in sllmd("config", "check").out
    outcome = sllmd("config", "check", str(tmp_path / "none.toml"))
    assert outcome.code == 4
    assert "--config" not in outcome.err

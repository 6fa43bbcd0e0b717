"""Commands on a store, mostly without a daemon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sllmd.store.builtin import make_builtin
from tests.cli.conftest import RunCommand, RunningDaemon
from tests.waiting import until


@pytest.fixture
def store(tmp_path: Path, sllmd: RunCommand) -> str:
    directory = str(tmp_path / "store")
    assert sllmd("import", "builtin:tiny", "--store", directory, "--name", "one").code == 0
    return directory


def test_import_says_what_came_of_it(sllmd: RunCommand, tmp_path: Path) -> None:
    source = tmp_path / "Some-Model"
    make_builtin("tiny", source)
    outcome = sllmd("import", str(source), "--store", str(tmp_path / "store"), "-o", "json")
    assert (outcome.code, outcome.err) == (0, "")
    facts = json.loads(outcome.out)
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["size_bytes"] > 0
    assert [
        row["name"] for row in json.loads(sllmd("list", "-o", "json", "--store", str(tmp_path / "store")).out)
    ] == [facts["name"]]


def test_the_same_model_again_is_there_already(sllmd: RunCommand, store: str) -> None:
    again = sllmd("import", "builtin:tiny", "--store", store, "--name", "one")
    assert (again.code, again.out) == (0, "one: there already, the same. Try: sllmd run one\n")
    facts = json.loads(sllmd("import", "builtin:tiny", "--store", store, "--name", "one", "-o", "json").out)
    assert (facts["there_already"], facts["replaced"]) == (True, None)


def test_a_damaged_model_that_is_imported_again_was_not_there_already(sllmd: RunCommand, store: str) -> None:
    [weights] = Path(store).glob("models/*/tensors.0.bin")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert sllmd("verify", "one", "--store", store).code == 1
    again = sllmd("import", "builtin:tiny", "--store", store, "--name", "one")
    assert again.code == 0
    assert "in place of its damaged copy" in again.out
    assert sllmd("verify", "one", "--store", store).code == 0


def test_another_model_of_that_name_is_replaced_only_when_told_to(
    sllmd: RunCommand, store: str, tmp_path: Path
) -> None:
    before = json.loads(sllmd("show", "one", "-o", "json", "--store", store).out)["digest"]
    other = tmp_path / "other"
    make_builtin("tiny", other)
    (other / "generation_config.json").unlink()
    arguments = ("import", str(other), "--store", store, "--name", "one")
    refused = sllmd(*arguments)
    assert (refused.code, refused.out) == (7, "")
    assert "`one` is another model already" in refused.err
    assert "from builtin:tiny" in refused.err
    assert "--replace" in refused.err
    assert f"in place of {before[:8]} of that name" in sllmd(*arguments, "--replace").out
    assert "in place of" not in sllmd("import", "builtin:tiny", "--store", store, "--name", "two").out


def test_show_says_what_was_imported(sllmd: RunCommand, store: str, tmp_path: Path) -> None:
    assert "builtin:tiny" in sllmd("show", "one", "--store", store).out
    source = tmp_path / "mine"
    make_builtin("tiny", source)
    assert sllmd("import", str(source), "--store", store).code == 0
    facts = json.loads(sllmd("show", "mine", "-o", "json", "--store", store).out)
    assert facts["source"]["location"] == str(source)


def test_without_a_terminal_progress_is_told_in_lines(sllmd: RunCommand, tmp_path: Path) -> None:
    arguments = ("import", "builtin:tiny", "--store", str(tmp_path / "store"))
    said = sllmd(*arguments).err.splitlines()
    assert len(said) == 1, "nothing lasts long enough for a second line"
    assert said[0].startswith("tiny: copying ")
    for quiet in (("-q",), ("-o", "json")):
        assert sllmd(*arguments, *quiet, "--name", f"m{quiet[-1]}").err == ""


def test_in_place(sllmd: RunCommand, tmp_path: Path) -> None:
    source = tmp_path / "there"
    make_builtin("tiny", source)
    store = str(tmp_path / "store")
    assert sllmd("import", str(source), "--in-place", "--store", store).code == 0
    (row,) = json.loads(sllmd("list", "-o", "json", "--store", store).out)
    assert row["kind"] == "in-place"
    assert str(source) in sllmd("show", row["name"], "--store", store).out


def test_list_show_verify_alias_rm(sllmd: RunCommand, store: str) -> None:
    table = sllmd("list", "--store", store).out.splitlines()
    assert table[0].split() == ["MODEL", "SIZE", "KIND", "ARCHITECTURE", "IMPORTED", "ALIASES"]
    assert table[1].startswith("one ")
    assert "2048 tokens" in sllmd("show", "one", "--store", store).out
    assert "are what was imported" in sllmd("verify", "one", "--store", store).out
    assert sllmd("alias", "uno", "one", "--store", store).out == "uno -> one\n"
    assert sllmd("alias", "uno", "one", "--store", store).code == 0
    assert json.loads(sllmd("show", "uno", "-o", "json", "--store", store).out)["name"] == "one"
    assert sllmd("rm", "one", "--store", store).code == 0
    empty = sllmd("list", "--store", store)
    assert (empty.code, empty.out) == (0, "")
    assert "sllmd import" in empty.err


def test_a_damaged_model_is_found(sllmd: RunCommand, store: str) -> None:
    facts = json.loads(sllmd("show", "one", "-o", "json", "--store", store).out)
    (data,) = Path(facts["data_directory"]).glob("tensors*.bin")
    with data.open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    outcome = sllmd("verify", "one", "--store", store)
    assert outcome.code == 1
    assert "checksum mismatch" in outcome.err
    assert data.name in outcome.err
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 3, "what goes on, the error and what to do, no log"
    directory = Path(store) / "quarantine"
    assert list(directory.iterdir())
    assert "sllmd rm" in outcome.err
    assert sllmd("rm", "one", "--store", store).code == 0
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("arguments", [("show", "x"), ("rm", "x"), ("verify", "x"), ("alias", "y", "x")])
def test_an_unknown_model_is_4(sllmd: RunCommand, store: str, arguments: tuple[str, ...]) -> None:
    assert sllmd(*arguments, "--store", store).code == 4


def test_a_source_that_is_not_there_is_4(sllmd: RunCommand, tmp_path: Path) -> None:
    outcome = sllmd("import", str(tmp_path / "nothing"), "--store", str(tmp_path / "store"))
    assert outcome.code == 4
    assert "nothing" in outcome.err
    assert "Traceback" not in outcome.err


def test_an_interrupted_import_says_so_in_one_line(
    sllmd: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    make_builtin("tiny", source)

    class Stopper:
        """A progress bar at which somebody presses Ctrl-C."""

        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> Stopper:
            return self

        def __exit__(self, *_: object) -> None: ...
        def __call__(self, *_: object) -> None:
            raise KeyboardInterrupt  # not the signal: a test before may have left another handler

    monkeypatch.setattr("sllmd.cli.importing.bytes_told", Stopper)
    outcome = sllmd("import", str(source), "--store", str(tmp_path / "store"))
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err == "sllmd: interrupted; the store is as it was\n"
    assert sllmd("list", "--store", str(tmp_path / "store")).out == ""


def test_without_a_daemon_the_configured_store_is_used(sllmd: RunCommand, tmp_path: Path) -> None:
    assert sllmd("import", "builtin:tiny", "--name", "here").code == 0
    assert (tmp_path / "state" / "store").is_dir()
    assert [row["name"] for row in json.loads(sllmd("list", "-o", "json").out)] == ["here"]


def test_a_named_daemon_must_answer(sllmd: RunCommand, tmp_path: Path) -> None:
    outcome = sllmd("list", "--addr", f"unix:{tmp_path}/none.sock")
    assert outcome.code == 3
    assert "--store" in outcome.err


def test_every_command_reads_the_file_that_the_environment_names(
    sllmd: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "other.toml"
    file.write_text(f'[node]\ndata_dir = "{tmp_path}/other"\n')
    monkeypatch.setenv("SLLMD_CONFIG", str(file))
    assert sllmd("import", "builtin:tiny").code == 0
    assert (tmp_path / "other" / "store" / "names" / "tiny.json").exists()
    assert str(file) in sllmd("config", "check").out


def test_looking_creates_nothing(sllmd: RunCommand, tmp_path: Path) -> None:
    assert sllmd("list").code == 0
    assert sllmd("show", "x").code == 4
    assert not (tmp_path / "state").exists()


@pytest.mark.slow
def test_what_is_removed_or_replaced_is_gone_everywhere(
    sllmd: RunCommand, at_daemon: RunningDaemon, tmp_path: Path
) -> None:
    """From the list at once; from memory, too, though somebody wanted it kept for ever."""
    for top_k, name in enumerate(("before", "after"), start=1):
        make_builtin("tiny", tmp_path / name)
        (tmp_path / name / "generation_config.json").write_text(f'{{"top_k": {top_k}}}')
    assert sllmd("import", str(tmp_path / "before"), "--name", "going").code == 0
    assert sllmd("alias", "leaving", "going").code == 0
    until(
        lambda: sllmd("run", "leaving", "x", "--max-tokens", "1", "--keep-alive", "-1").code == 0, "it serves"
    )
    removed = sllmd("rm", "leaving")
    assert removed.out == "leaving removed, which was another name of going; going stays\n"
    assert [row["aliases"] for row in listed(sllmd) if row["name"] == "going"] == [[]]
    assert sllmd("show", "leaving").code == 4

    assert held(sllmd, "going")
    assert sllmd("import", str(tmp_path / "after"), "--name", "going", "--replace").code == 0
    until(lambda: not held(sllmd, "going"), "the replaced one is gone")
    assert sllmd("run", "going", "x", "--max-tokens", "1", "--keep-alive", "-1").code == 0
    assert held(sllmd, "going")
    assert sllmd("alias", "leaving", "going").code == 0
    assert sllmd("rm", "going").out.startswith("going and its other name leaving removed, ")
    assert [row["name"] for row in listed(sllmd) if row["name"] == "going"] == []
    until(lambda: not held(sllmd, "going"), "the removed one is gone")


def listed(sllmd: RunCommand) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(sllmd("list", "-o", "json").out)
    return rows


def held(sllmd: RunCommand, model: str) -> list[str]:
    """Its replicas, and its copies in DRAM."""
    return [row["state"] for row in json.loads(sllmd("ps", "-o", "json").out) if row["model"] == model]

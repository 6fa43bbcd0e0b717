"""Checkpoints that are broken or made to hurt: each is refused by name, and the store stays as it was."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sllmd.core.errors import (
    CheckpointError,
    MalformedCheckpoint,
    SllmdError,
    StoreError,
    UnsupportedCheckpoint,
)
from sllmd.store.store import Store
from tests.store.models import (
    CONFIG,
    llama_tensors,
    run_import,
    snapshot,
    write_index,
    write_model,
    write_sharded,
)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def truncate(root: Path) -> None:
    os.truncate(root / WEIGHTS, (root / WEIGHTS).stat().st_size - 1)


def append(root: Path) -> None:
    with (root / WEIGHTS).open("ab") as file:
        file.write(b"x")


def header_is_noise(root: Path) -> None:
    with (root / WEIGHTS).open("r+b") as file:
        file.seek(8)
        file.write(os.urandom(32))


def config(**changes: object) -> Callable[[Path], object]:
    return lambda root: (root / "config.json").write_text(json.dumps(CONFIG | changes))


def text(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / file).write_bytes(content)


def link(file: str, target: str) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        (root / file).unlink(missing_ok=True)
        (root / file).symlink_to(target)

    return make


def fifo(file: str) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        (root / file).unlink()
        os.mkfifo(root / file)

    return make


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated weights": (truncate, r"model\.safetensors is truncated"),
    "weights too long": (append, r"model\.safetensors has 1 bytes"),
    "zero-byte weights": (text(WEIGHTS, b""), r"model\.safetensors is empty"),
    "weights of noise": (header_is_noise, r"model\.safetensors"),
    "weights are text": (text(WEIGHTS, b"<html>404 not found</html>"), "not a safetensors file"),
    "git-lfs pointer": (text(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), "model.safetensors"),
    "weights are a FIFO": (fifo(WEIGHTS), r"model\.safetensors is not a regular file"),
    "no config": (lambda root: (root / "config.json").unlink(), r"config\.json is missing"),
    "zero-byte config": (text("config.json", b""), r"config\.json has 0 bytes"),
    "config is no JSON": (text("config.json", b"{"), r"config\.json is not valid JSON"),
    "config is not UTF-8": (text("config.json", b'{"a": "\xff"}'), r"config\.json is not valid JSON"),
    "config is a list": (text("config.json", b"[]"), r"config\.json is not a JSON object"),
    "config nests without end": (text("config.json", b"[" * 100_000), r"config\.json is not valid JSON"),
    "no architecture": (config(architectures=None), "names no architecture"),
    "empty architectures": (config(architectures=[]), "names no architecture"),
    "architecture is a path": (config(architectures=["../x"]), "names no architecture"),
    "quantised": (config(quantization_config={"quant_method": "gptq"}), "quantised .gptq."),
    "tokenizer is a FIFO": (fifo("tokenizer.json"), r"tokenizer\.json is not a regular file"),
    "weights link outside": (link(WEIGHTS, "/etc/hostname"), "leaves the checkpoint"),
    "tokenizer links outside": (link("tokenizer.json", "/etc/hostname"), "leaves the checkpoint"),
    "config links nowhere": (link("config.json", "gone"), r"config\.json is missing"),
    "config links to itself": (link("config.json", "config.json"), r"config\.json cannot be followed"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_directory(store: Store, tmp_path: Path, case: str) -> None:
    damage, fault = CASES[case]
    run_import(store, write_model(tmp_path / "good"), "kept")
    source = write_model(tmp_path / "bad")
    damage(source)
    refused(store, source, fault)


def refused(store: Store, source: Path, fault: str) -> None:
    before = snapshot(store.root)
    for in_place in (False, True):
        with pytest.raises(CheckpointError, match=fault):
            run_import(store, source, in_place=in_place)
        assert snapshot(store.root) == before
        assert list((store.root / "partial").iterdir()) == []


INDEX_CASES: dict[str, tuple[object, str]] = {
    "a file that is missing": ({"a": "gone.safetensors"}, "gone.safetensors is missing"),
    "a tensor that is missing": ({"a": "x.safetensors", "b": "x.safetensors"}, "tensor b is missing from x"),
    "not all tensors": ({"c": "x.safetensors"}, "tensor a, which the index does not place there"),
    "a file above": ({"a": "../x.safetensors"}, "points outside"),
    "a file far above": ({"a": "y/../../x.safetensors"}, "points outside"),
    "an absolute file": ({"a": "/etc/passwd"}, "points outside"),
    "a file with a NUL": ({"a": "x\0.safetensors"}, "points outside"),
    "a Windows path": ({"a": "..\\x.safetensors"}, "points outside"),
    "the directory itself": ({"a": "."}, "points outside"),
    "an empty name": ({"a": ""}, "points outside"),
    "a directory": ({"a": "sub"}, "sub is not a regular file"),
    "a number": ({"a": 5}, "not a string"),
    "nothing": ({}, "no weight_map"),
    "a list": (["x.safetensors"], "no weight_map"),
}


@pytest.mark.parametrize("case", INDEX_CASES)
def test_an_index_that_names(store: Store, tmp_path: Path, case: str) -> None:
    weight_map, fault = INDEX_CASES[case]
    source = write_sharded(tmp_path / "bad", {"x.safetensors": {"a": np.zeros(3, np.float32)}})
    (source / "sub").mkdir()
    write_model(tmp_path / "good")
    (tmp_path / "x.safetensors").write_bytes((source / "x.safetensors").read_bytes())
    run_import(store, tmp_path / "good", "kept")
    write_index(source, weight_map)  # type: ignore[arg-type]
    refused(store, source, fault)


def test_an_index_that_is_no_json(store: Store, tmp_path: Path) -> None:
    source = write_sharded(tmp_path / "bad", {"x.safetensors": {"a": np.zeros(3, np.float32)}})
    (source / INDEX).write_text("{")
    with pytest.raises(MalformedCheckpoint, match=r"index\.json is not valid JSON"):
        run_import(store, source)


def test_a_tensor_that_is_in_two_shards(store: Store, tmp_path: Path) -> None:
    one = {"a": np.zeros(3, np.float32)}
    source = write_sharded(tmp_path / "bad", {"x.safetensors": one, "y.safetensors": one | {"b": one["a"]}})
    write_index(source, {"a": "x.safetensors", "b": "y.safetensors"})
    with pytest.raises(MalformedCheckpoint, match="tensor a"):
        run_import(store, source)


def test_a_hugging_face_cache_is_followed_into_its_blobs(store: Store, tmp_path: Path) -> None:
    blobs = write_model(tmp_path / "models--o--n" / "blobs")
    snapshot_directory = tmp_path / "models--o--n" / "snapshots" / "abc"
    snapshot_directory.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot_directory / blob.name).symlink_to(Path("../../blobs") / blob.name)
    assert run_import(store, snapshot_directory, in_place=True).manifest.architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({}, "holds no model"),
        ({"a.safetensors": b"", "b.safetensors": b""}, "2 safetensors files and no"),
        ({"a.gguf": b"", "b.gguf": b""}, "2 GGUF files"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "is an adapter"),
    ],
)
def test_a_directory_that_is_no_model(store: Store, tmp_path: Path, files: dict, fault: str) -> None:
    source = tmp_path / "bad"
    source.mkdir()
    for name, content in files.items():
        (source / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=fault):
        run_import(store, source)


def test_a_file_of_no_known_kind(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK")
    with pytest.raises(UnsupportedCheckpoint, match=r"model\.zip"):
        run_import(store, tmp_path / "model.zip")


def test_a_source_that_changes_while_it_is_copied(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    with pytest.raises(MalformedCheckpoint, match="changed while it was imported"):
        run_import(store, source, on_progress=lambda progress: os.utime(source / WEIGHTS, ns=(1, 1)))
    assert store.models() == []


def test_a_source_that_shrinks_while_it_is_copied(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m", llama_tensors(layers=8, width=400))
    with pytest.raises(MalformedCheckpoint, match="ended inside tensor"):
        run_import(store, source, on_progress=lambda progress: os.truncate(source / WEIGHTS, 8192))
    assert store.models() == []


def test_served_in_place_a_directory_that_changed_is_not_served(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    run_import(store, source, in_place=True)
    weights = (source / WEIGHTS).read_bytes()
    os.utime(source / WEIGHTS, ns=(1, 1))
    with pytest.raises(MalformedCheckpoint, match="changed since"):
        store.resolve("m")
    (source / WEIGHTS).unlink()
    with pytest.raises(SllmdError, match="cannot be read any more"):
        store.resolve("m")
    (source / WEIGHTS).write_bytes(weights)
    run_import(store, source, in_place=True)
    store.resolve("m")


def test_a_model_without_a_tokenizer_is_refused(store: Store, tmp_path: Path) -> None:
    root = write_model(tmp_path / "m")
    (root / "tokenizer.json").unlink()
    for in_place in (False, True):
        with pytest.raises(UnsupportedCheckpoint, match="has no tokenizer"):
            run_import(store, root, in_place=in_place)
    assert store.models() == []


def test_weights_without_a_configuration_say_what_is_missing_and_where(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"PK")
    with pytest.raises(MalformedCheckpoint, match=rf"config\.json is missing in {tmp_path} .*beside"):
        run_import(store, tmp_path / "x.bin")


def test_an_id_on_a_hub_is_told_what_to_do(store: Store) -> None:
    with pytest.raises(StoreError, match=r"does not exist .*hf://Org/Name-8B"):
        run_import(store, "Org/Name-8B")
    with pytest.raises(StoreError, match=r"does not exist .give a directory"):
        run_import(store, "/nowhere/at/all")

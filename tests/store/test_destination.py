"""A name that is taken: the same model is there already, another one is refused unless it is to go."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sllmd.core.errors import Conflict
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.store import Store
from tests.store.ggufs import write_gguf
from tests.store.models import (
    CHUNK_BYTES,
    CONFIG,
    SETTINGS,
    as_bytes,
    llama_tensors,
    read_back,
    run_import,
    snapshot,
    write_model,
)


def facts(store: Store) -> dict[str, bytes]:
    """The store but for the time of import."""
    files = snapshot(store.root)
    return {name: data for name, data in files.items() if not name.startswith("names")}


@pytest.mark.parametrize("source", ["directory", "in-place", "builtin:tiny"])
def test_the_same_model_again_is_there_already(store: Store, tmp_path: Path, source: str) -> None:
    model = source if source == "builtin:tiny" else str(write_model(tmp_path / "m"))
    in_place = source == "in-place"
    first = run_import(store, model, in_place=in_place)
    before = facts(store)
    imported_at = store.model("m").imported_at
    again = run_import(store, model, in_place=in_place)
    assert again.manifest.digest == first.manifest.digest
    assert facts(store) == before
    assert store.model("m").imported_at > imported_at


def test_a_copy_of_the_same_model_from_elsewhere_is_there_already(store: Store, tmp_path: Path) -> None:
    first = run_import(store, write_model(tmp_path / "here"))
    assert run_import(store, write_model(tmp_path / "there")).directory == first.directory


def test_an_untouched_source_is_not_read_again(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    run_import(store, source)
    run_import(store, source, on_progress=lambda step: pytest.fail(f"{step} of what is there"))


def another_config(source: Path) -> None:
    (source / "config.json").write_text(json.dumps(CONFIG | {"rope_theta": 5}))


def another_tokenizer(source: Path) -> None:
    (source / "tokenizer.json").write_text('{"changed": 1}')


def other_weights(source: Path) -> None:
    other = write_model(source.with_name("other"), llama_tensors(seed=2))
    (other / "model.safetensors").rename(source / "model.safetensors")


def another_shape(source: Path) -> None:
    other = write_model(source.with_name("other"), llama_tensors(layers=3))
    (other / "model.safetensors").rename(source / "model.safetensors")


CHANGES = [another_config, another_tokenizer, other_weights, another_shape]


@pytest.mark.parametrize("in_place", [False, True], ids=["stored", "in place"])
@pytest.mark.parametrize("change", CHANGES)
def test_another_model_is_refused_and_replaces_when_told_to(
    store: Store, tmp_path: Path, change: Callable[[Path], None], in_place: bool
) -> None:
    first = run_import(store, write_model(tmp_path / "first"), in_place=in_place)
    second = write_model(tmp_path / "second")
    change(second)
    before = snapshot(store.root)
    with pytest.raises(Conflict, match="`m` is another model already") as caught:
        run_import(store, second, in_place=in_place)
    assert str(tmp_path / "first") in caught.value.message
    assert first.manifest.digest[:8] in caught.value.message
    assert "--replace" in str(caught.value.hint)
    assert snapshot(store.root) == before
    assert store.resolve("m") == first

    replaced = run_import(store, second, in_place=in_place, replace=True)
    assert replaced.manifest.digest != first.manifest.digest
    assert store.resolve("m") == replaced


def test_other_partitions_are_another_model(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    run_import(store, source)
    with pytest.raises(Conflict):
        run_import(store, source, partitions=2)
    assert len(run_import(store, source, partitions=2, replace=True).manifest.partitions) == 2


def test_other_chunks_are_another_model(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    run_import(store, source)
    settings = SETTINGS.model_copy(update={"chunk_bytes": 2 * CHUNK_BYTES})
    with pytest.raises(Conflict):
        run_import(store, source, settings=settings, on_progress=lambda step: pytest.fail(str(step)))
    again = run_import(store, source, settings=settings, replace=True)
    assert again.manifest.chunk_bytes == 2 * CHUNK_BYTES


def test_nothing_is_copied_to_learn_that_a_name_is_taken(store: Store, tmp_path: Path) -> None:
    run_import(store, write_model(tmp_path / "first"))
    second = write_model(tmp_path / "second")
    other_weights(second)
    stages: set[str] = set()
    with pytest.raises(Conflict):
        run_import(store, second, on_progress=lambda step: stages.add(step.stage))
    assert stages == {"hashing"}


def quarantine(store: Store, checkpoint: Checkpoint) -> None:
    store.quarantine(checkpoint, "tensors.0.bin", 0)


def truncate(store: Store, checkpoint: Checkpoint) -> None:
    data = checkpoint.data_directory / "tensors.0.bin"
    data.write_bytes(data.read_bytes()[:-1])


def remove(store: Store, checkpoint: Checkpoint) -> None:
    (checkpoint.data_directory / "tensors.0.bin").unlink()


def spoil_the_manifest(store: Store, checkpoint: Checkpoint) -> None:
    (checkpoint.directory / "manifest.json").write_text("{}")


@pytest.mark.parametrize("spoil", [quarantine, truncate, remove, spoil_the_manifest])
def test_a_damaged_model_is_repaired_by_importing_it_again(
    store: Store, tmp_path: Path, spoil: Callable[[Store, Checkpoint], None]
) -> None:
    source = write_model(tmp_path / "m")
    spoil(store, run_import(store, source))
    store = Store(store.root)
    assert read_back(run_import(store, source)) == as_bytes(llama_tensors())
    store.verify("m", lambda done, total: None)


@pytest.mark.slow
def test_a_gguf_file_is_not_converted_to_learn_that_its_name_is_taken(store: Store, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_gguf(tmp_path / name / "m.gguf", {})
    first = run_import(store, tmp_path / "a" / "m.gguf")
    untouched = run_import(store, tmp_path / "a" / "m.gguf", on_progress=lambda step: pytest.fail(str(step)))
    assert untouched == first
    with pytest.raises(Conflict, match="another model already"):
        run_import(store, tmp_path / "b" / "m.gguf", on_progress=lambda step: pytest.fail(str(step)))
    settings = SETTINGS.model_copy(update={"gguf_dtype": "float32"})
    with pytest.raises(Conflict, match="another model already"):
        run_import(
            store,
            tmp_path / "a" / "m.gguf",
            settings=settings,
            on_progress=lambda step: pytest.fail(str(step)),
        )
    (tmp_path / "a" / "m.gguf").touch()
    assert run_import(store, tmp_path / "a" / "m.gguf") == first

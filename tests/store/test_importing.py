from pathlib import Path

import numpy as np
import pytest
import xxhash

from sllmd.core.errors import InvalidRequest, ModelNotFound, PathNotFound
from sllmd.core.units import MIB
from sllmd.store.importing import default_name
from sllmd.store.progress import ImportProgress
from sllmd.store.settings import ImportSettings
from sllmd.store.store import Store
from tests.store.models import (
    CHUNK_BYTES,
    as_bytes,
    llama_tensors,
    read_back,
    run_import,
    write_model,
    write_sharded,
)

AWKWARD_SIZES = [
    1,
    2,
    511,
    4095,
    4096,
    4097,
    CHUNK_BYTES - 1,
    CHUNK_BYTES,
    CHUNK_BYTES + 1,
    2 * CHUNK_BYTES - 4096,
    3 * CHUNK_BYTES - 1,
    3 * CHUNK_BYTES + 1,
]


@pytest.mark.parametrize("size", [0, *AWKWARD_SIZES])
def test_a_tensor_of_any_length_arrives_whole(store: Store, tmp_path: Path, size: int) -> None:
    tensors = {"w": np.random.default_rng(size).integers(0, 256, size, np.uint8)}
    checkpoint = run_import(store, write_model(tmp_path / "m", tensors))
    assert read_back(checkpoint) == as_bytes(tensors)
    store.verify("m", lambda done, total: None)


def test_all_awkward_lengths_together_over_any_number_of_partitions(store: Store, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    tensors = {
        f"model.layers.{i}.w": random.integers(0, 256, size, np.uint8) for i, size in enumerate(AWKWARD_SIZES)
    }
    source = write_model(tmp_path / "m", tensors)
    for partitions in (1, 2, 5, len(AWKWARD_SIZES)):
        checkpoint = run_import(store, source, partitions=partitions, replace=True)
        assert len(checkpoint.manifest.partitions) == partitions
        assert read_back(checkpoint) == as_bytes(tensors)


def test_a_tensor_longer_than_the_copy_buffer_arrives_whole(store: Store, tmp_path: Path) -> None:
    tensors = {"w": np.random.default_rng(5).integers(0, 256, 9 * MIB + 1, np.uint8)}
    checkpoint = run_import(store, write_model(tmp_path / "m", tensors), settings=ImportSettings())
    assert read_back(checkpoint) == as_bytes(tensors)


def test_checksums_are_those_of_the_bytes_on_disk(store: Store, tmp_path: Path) -> None:
    checkpoint = run_import(store, write_model(tmp_path / "m"), partitions=2)
    for partition in checkpoint.manifest.partitions:
        (file,) = partition.files
        data = (checkpoint.data_directory / file.path).read_bytes()
        pieces = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
        assert file.chunk_digests == tuple(xxhash.xxh3_128_hexdigest(piece) for piece in pieces)
        assert file.size_bytes == partition.span_bytes


def test_single_sharded_and_one_file_of_the_same_weights_are_the_same_model(
    store: Store, tmp_path: Path
) -> None:
    tensors = llama_tensors()
    names = list(tensors)
    single = write_model(tmp_path / "single", tensors)
    sharded = write_sharded(
        tmp_path / "sharded",
        {
            "a.safetensors": {n: tensors[n] for n in names[:3]},
            "s/b.safetensors": {n: tensors[n] for n in names[3:]},
        },
    )
    digests = {
        run_import(store, single, "one").manifest.digest,
        run_import(store, sharded, "two").manifest.digest,
        run_import(store, single / "model.safetensors", "three").manifest.digest,
    }
    assert len(digests) == 1
    assert read_back(store.resolve("two")) == as_bytes(tensors)


def test_in_place_nothing_is_copied_and_every_tensor_is_found(store: Store, tmp_path: Path) -> None:
    tensors = llama_tensors()
    names = list(tensors)
    source = write_sharded(
        tmp_path / "m",
        {
            "a.safetensors": {n: tensors[n] for n in names[:4]},
            "b.safetensors": {n: tensors[n] for n in names[4:]},
        },
    )
    checkpoint = run_import(store, source, in_place=True)
    assert checkpoint.data_directory == source
    assert store.models()[0].kind == "in-place"
    assert read_back(checkpoint) == as_bytes(tensors)
    assert not list(store.root.rglob("*.bin"))
    store.verify("m", lambda done, total: None)


def test_what_the_text_room_needs_comes_along(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "README.md").write_text("not needed")
    for in_place in (False, True):
        checkpoint = run_import(store, source, in_place=in_place, replace=True)
        assert checkpoint.manifest.small_files == ("config.json", "tokenizer.json", "chat_template.jinja")
        assert (checkpoint.directory / "chat_template.jinja").read_text() == "{{ messages }}"
        assert not (checkpoint.directory / "README.md").exists()


def test_a_head_with_the_embeddings_bytes_is_stored_once(store: Store, tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    checkpoint = run_import(store, write_model(tmp_path / "m", tensors))
    assert checkpoint.manifest.ties == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "lm_head.weight" not in [tensor.name for tensor in checkpoint.manifest.tensors]
    assert read_back(checkpoint) == as_bytes(tensors)


def test_a_head_of_its_own_is_kept(store: Store, tmp_path: Path) -> None:
    assert run_import(store, write_model(tmp_path / "m")).manifest.ties == {}


def test_importing_again_replaces_weights_small_files_and_keeps_aliases(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    first = run_import(store, source)
    store.alias("other", "m")
    assert run_import(store, source).manifest.digest == first.manifest.digest

    (source / "tokenizer.json").write_text('{"changed": 1}')
    second = run_import(store, source, replace=True)
    assert second.manifest.digest != first.manifest.digest
    changed = write_model(tmp_path / "n", llama_tensors(seed=2))
    third = run_import(store, changed, replace=True)
    assert len({first.manifest.digest, second.manifest.digest, third.manifest.digest}) == 3

    assert store.resolve("other") == third
    assert read_back(third) == as_bytes(llama_tensors(seed=2))
    assert [path.name for path in (store.root / "models").iterdir()] == [third.directory.name]
    assert list((store.root / "partial").iterdir()) == []


def test_progress_counts_every_byte_once(store: Store, tmp_path: Path) -> None:
    seen: list[ImportProgress] = []
    source = write_model(tmp_path / "m")
    run_import(store, source, partitions=2, on_progress=seen.append)
    total = sum(len(data) for data in as_bytes(llama_tensors()).values())
    assert [step.bytes_done for step in seen] == sorted(step.bytes_done for step in seen)
    assert seen[0] == ImportProgress("copying", 0, total)
    assert seen[-1] == ImportProgress("copying", total, total)
    run_import(store, source, in_place=True, replace=True, on_progress=seen.append)
    size = (source / "model.safetensors").stat().st_size
    assert seen[-1] == ImportProgress("hashing", size, size)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/srv/models/Qwen3-8B/", "qwen3-8b"),
        ("model.Q4_K_M.gguf", "model.q4_k_m"),
        ("builtin:tiny", "tiny"),
        ("https://host/org/Some Model", "some-model"),
        ("https://hub/org/Name/resolve/main", "name"),
        ("https://host/org/name/?token=secret", "name"),
        ("https://hub/org/name/resolve/main?download=true", "name"),
    ],
)
def test_a_model_is_named_after_its_source(source: str, name: str) -> None:
    assert default_name(source) == name


@pytest.mark.parametrize(
    "name", ["", "../up", "a/../b", "/abs", ".hidden", "a b", "a\n", "x" * 121, "a//b", "a/", "a" + ":" * 100]
)
def test_names_that_are_no_names(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot name a model"):
        run_import(store, write_model(tmp_path / "m"), name)


def test_a_name_with_a_slash_is_one_model(store: Store, tmp_path: Path) -> None:
    run_import(store, write_model(tmp_path / "m"), "org/model:v1")
    assert store.resolve("org/model:v1").name == "org/model:v1"
    assert [model.name for model in store.models()] == ["org/model:v1"]


def test_options_that_contradict_each_other(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    with pytest.raises(InvalidRequest, match="one partition"):
        run_import(store, source, in_place=True, partitions=2)
    with pytest.raises(InvalidRequest, match="in place"):
        run_import(store, "builtin:tiny", in_place=True)
    with pytest.raises(PathNotFound, match="does not exist"):
        run_import(store, tmp_path / "nowhere")
    with pytest.raises(ModelNotFound, match="no built-in model"):
        run_import(store, "builtin:huge")


def test_the_built_in_model_is_the_same_every_time(store: Store, tmp_path: Path) -> None:
    first = run_import(store, "builtin:tiny", None)
    second = run_import(Store(tmp_path / "other"), "builtin:tiny", None)
    assert first.name == "tiny"
    assert first.manifest.digest == second.manifest.digest
    assert first.manifest.size_bytes < 2 * MIB
    assert first.manifest.ties == {"lm_head.weight": "model.embed_tokens.weight"}


def test_a_model_appears_only_when_it_is_whole(store: Store, tmp_path: Path) -> None:
    def nobody_sees_it(progress: ImportProgress) -> None:
        with pytest.raises(ModelNotFound):
            Store(store.root).resolve("m")
        assert list((store.root / "models").iterdir()) == []

    run_import(store, write_model(tmp_path / "m"), on_progress=nobody_sees_it)
    assert Store(store.root).resolve("m").name == "m"

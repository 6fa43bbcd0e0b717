import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from sllmd.core.errors import (
    ChecksumMismatch,
    Conflict,
    InvalidRequest,
    MalformedCheckpoint,
    ModelNotFound,
    UnsupportedCheckpoint,
)
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.shelves import QUARANTINED_COPIES_MAX
from sllmd.store.store import Store
from tests.store.models import CHUNK_BYTES, as_bytes, llama_tensors, read_back, run_import, write_model


def ignore(done: int, total: int) -> None:
    pass


def damage(checkpoint: Checkpoint, chunk_index: int) -> str:
    """Flip one bit in one chunk; the file's path in the manifest."""
    file = checkpoint.manifest.partitions[0].files[0]
    with (checkpoint.data_directory / file.path).open("r+b") as handle:
        handle.seek(chunk_index * CHUNK_BYTES)
        byte = handle.read(1)[0]
        handle.seek(chunk_index * CHUNK_BYTES)
        handle.write(bytes([byte ^ 4]))
    return file.path


def test_a_store_that_is_not_there_is_empty(store: Store) -> None:
    assert store.models() == []
    with pytest.raises(ModelNotFound, match="The model `m` does not exist"):
        store.resolve("m")
    assert not store.root.exists()


@pytest.fixture
def tight_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("tight_umask")
def test_what_root_makes_is_the_store_owners(store: Store, tmp_path: Path) -> None:
    """Else root's import locks out the daemon, which is another user; modes are for others that look."""
    store.root.mkdir()
    store.root.chmod(0o755)
    owner = (4711, 4712) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(store.root, *owner)
    run_import(store, write_model(tmp_path / "m"), "m")
    run_import(store, "builtin:tiny", "tiny")
    store.alias("other", "m")
    store.remove("tiny")
    made = list(store.root.rglob("*"))
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {owner}
    modes = {path.relative_to(store.root).as_posix(): path.stat().st_mode & 0o777 for path in made}
    assert {mode for name, mode in modes.items() if (store.root / name).is_dir()} == {0o755}
    assert modes["names/m.json"] == 0o644
    assert {mode for name, mode in modes.items() if name.startswith("models/") and "." in name} == {0o644}


def test_an_entry_that_cannot_be_read_hides_no_other(store: Store) -> None:
    run_import(store, "builtin:tiny", "tiny")
    entry = store.root / "names" / "bad.json"
    entry.mkdir()  # what the system refuses to read, also for root
    tiny, bad = sorted(store.models(), key=lambda model: model.problem is not None)
    assert (tiny.name, tiny.problem) == ("tiny", None)
    assert bad.name == "bad"
    assert "cannot be read: Is a directory" in str(bad.problem)
    assert store.resolve("tiny").name == "tiny"
    with pytest.raises(MalformedCheckpoint, match=r"entry of `bad` cannot be read"):
        store.resolve("bad")
    entry.rmdir()
    assert [model.name for model in store.models()] == ["tiny"]


def test_an_unknown_name_meets_the_closest_one(store: Store) -> None:
    run_import(store, "builtin:tiny", "qwen3-8b")
    store.alias("gpt-4o-mini", "qwen3-8b")
    with pytest.raises(ModelNotFound, match="Did you mean `qwen3-8b`"):
        store.resolve("qwen3-8")
    with pytest.raises(ModelNotFound, match="Did you mean `gpt-4o-mini`"):
        store.resolve("gpt-4o-min")


def test_a_daemon_sees_what_other_processes_do(store: Store, tmp_path: Path) -> None:
    """However fast changes follow each other: a directory's time alone has the kernel's tick."""
    daemon = Store(store.root)
    source, other = write_model(tmp_path / "a"), write_model(tmp_path / "b", llama_tensors(seed=5))
    for round_number in range(5):
        first = run_import(store, source)
        assert daemon.resolve("m").manifest.digest == first.manifest.digest
        second = run_import(store, other, replace=True)
        assert daemon.resolve("m").manifest.digest == second.manifest.digest
        store.alias(f"alias-{round_number}", "m")
        assert daemon.resolve(f"alias-{round_number}") == second
        store.remove("m")
        with pytest.raises(ModelNotFound):
            daemon.resolve("m")


def test_resolving_again_costs_microseconds(store: Store) -> None:
    run_import(store, "builtin:tiny")
    while time.time_ns() - (store.root / "names").stat().st_mtime_ns < 150_000_000:
        store.resolve("m")
    first = store.resolve("m")
    began = time.process_time()
    for _ in range(200):
        assert store.resolve("m") is first
    assert (time.process_time() - began) / 200 < 0.001


def test_an_alias_is_another_name(store: Store) -> None:
    tiny = run_import(store, "builtin:tiny", "tiny")
    other = run_import(store, "builtin:tiny", "other")
    store.alias("a", "tiny")
    store.alias("a", "tiny")
    assert store.resolve("a") == tiny
    assert next(model for model in store.models() if model.name == "tiny").aliases == ("a",)
    with pytest.raises(Conflict, match="another name of `tiny` already"):
        store.alias("a", "other")
    store.alias("a", "other", replace=True)
    assert store.resolve("a") == other
    store.alias("b", "a")
    assert store.resolve("b") == other
    assert store.remove("a") == 0
    with pytest.raises(ModelNotFound):
        store.resolve("a")
    assert store.resolve("other") == other
    with pytest.raises(Conflict, match="is a model"):
        store.alias("tiny", "other")
    with pytest.raises(InvalidRequest):
        store.alias("../x", "other")
    with pytest.raises(ModelNotFound):
        store.alias("c", "nobody")
    with pytest.raises(Conflict, match="is an alias of `other`"):
        run_import(store, "builtin:tiny", "b")


def test_removing_frees_what_it_says(store: Store, tmp_path: Path) -> None:
    checkpoint = run_import(store, write_model(tmp_path / "m"))
    size = sum(path.stat().st_size for path in checkpoint.directory.iterdir())
    assert store.remove("m") == size
    assert not checkpoint.directory.exists()
    with pytest.raises(ModelNotFound):
        store.remove("m")


def test_removing_a_model_served_in_place_leaves_the_users_files(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    run_import(store, source, in_place=True)
    store.remove("m")
    assert (source / "model.safetensors").exists()


@pytest.mark.parametrize("chunk_index", [0, 1, 3])
def test_a_flipped_bit_is_found_and_the_copy_quarantined(
    store: Store, tmp_path: Path, chunk_index: int
) -> None:
    source = write_model(tmp_path / "m")
    checkpoint = run_import(store, source)
    store.verify("m", ignore)
    file = damage(checkpoint, chunk_index)
    with pytest.raises(ChecksumMismatch, match=rf"{file}, chunk {chunk_index}; the bad copy was moved to"):
        store.verify("m", ignore)
    assert not checkpoint.directory.exists()
    (quarantined,) = (store.root / "quarantine").iterdir()
    assert (quarantined / file).exists()
    for _ in range(2):
        with pytest.raises(ChecksumMismatch, match=f"chunk {chunk_index}"):
            Store(store.root).resolve("m")
    assert "import the model again" in (store.models()[0].problem or "")
    assert read_back(run_import(store, source)) == as_bytes(llama_tensors())
    assert store.models()[0].problem is None


def test_quarantine_twice_and_of_a_copy_that_was_replaced(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    first = run_import(store, source)
    moved_to = store.quarantine(first, "tensors.0.bin", 0)
    assert Path(moved_to).is_dir()
    assert store.quarantine(first, "tensors.0.bin", 1) == moved_to
    second = run_import(store, source)
    assert store.quarantine(first, "tensors.0.bin", 0) == ""
    assert store.resolve("m") == second
    store.remove("m")
    assert store.quarantine(second, "tensors.0.bin", 0) == ""


def test_the_quarantine_keeps_the_latest_copies_only(store: Store, tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    kept = [
        Path(store.quarantine(run_import(store, source), "tensors.0.bin", 0))
        for _ in range(QUARANTINED_COPIES_MAX + 2)
    ]
    assert len(list((store.root / "quarantine").iterdir())) == QUARANTINED_COPIES_MAX
    assert kept[-1].exists()


def test_in_place_a_bad_file_is_taken_out_of_service_and_left_where_it_is(
    store: Store, tmp_path: Path
) -> None:
    source = write_model(tmp_path / "m")
    checkpoint = run_import(store, source, in_place=True)
    status = (source / "model.safetensors").stat()
    damage(checkpoint, 1)
    os.utime(source / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ChecksumMismatch, match=r"model\.safetensors, chunk 1") as caught:
        store.verify("m", ignore)
    assert "moved" not in caught.value.message
    assert (source / "model.safetensors").exists()
    with pytest.raises(ChecksumMismatch):
        store.resolve("m")


def edit_manifest(checkpoint: Checkpoint, change: Mapping[str, object]) -> None:
    path = checkpoint.directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("spoil", "error", "fault"),
    [
        (lambda c: (c.directory / "manifest.json").unlink(), MalformedCheckpoint, "is missing"),
        (lambda c: (c.directory / "manifest.json").write_bytes(b""), MalformedCheckpoint, "no manifest"),
        (
            lambda c: (c.directory / "manifest.json").write_bytes(b"[" * 10**5),
            MalformedCheckpoint,
            "no manifest",
        ),
        (lambda c: edit_manifest(c, {"format_version": 99}), UnsupportedCheckpoint, "format version 99"),
        (lambda c: edit_manifest(c, {"digest": "0" * 32}), MalformedCheckpoint, "not what was imported"),
        (lambda c: edit_manifest(c, {"tensors": 5}), MalformedCheckpoint, "tensors"),
        (lambda c: shutil.rmtree(c.directory), MalformedCheckpoint, "is missing"),
    ],
)
def test_a_spoilt_manifest_is_an_error_that_names_it(store: Store, tmp_path, spoil, error, fault) -> None:
    checkpoint = run_import(store, write_model(tmp_path / "m"))
    spoil(checkpoint)
    with pytest.raises(error, match=fault) as caught:
        Store(store.root).resolve("m")
    assert checkpoint.directory.name in caught.value.message
    assert len(store.models()) == 1


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda c: (c.directory / "tokenizer.json").write_text("{ }"), "not what was imported"),
        (lambda c: (c.directory / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
        (lambda c: edit_manifest(c, {"ties": {"x": "model.norm.weight"}}), "not what was imported"),
        (lambda c: (c.directory / "tensors.0.bin").unlink(), r"tensors\.0\.bin is missing"),
        (lambda c: os.truncate(c.directory / "tensors.0.bin", 4096), r"tensors\.0\.bin has 4096 bytes"),
    ],
)
def test_verify_finds_more_than_flipped_bits(store: Store, tmp_path: Path, spoil, fault: str) -> None:
    spoil(run_import(store, write_model(tmp_path / "m")))
    with pytest.raises(MalformedCheckpoint, match=fault):
        store.verify("m", ignore)


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 10**5, '{"version": 99}', '{"version": 1}'])
def test_a_spoilt_entry_hides_no_other_model(store: Store, content: str) -> None:
    run_import(store, "builtin:tiny", "good")
    run_import(store, "builtin:tiny", "bad")
    (store.root / "names" / "bad.json").write_text(content)
    reader = Store(store.root)
    assert [model.name for model in reader.models() if model.problem is None] == ["good"]
    with pytest.raises(MalformedCheckpoint, match="entry of `bad` cannot be read"):
        reader.resolve("bad")
    run_import(reader, "builtin:tiny", "third")
    assert reader.resolve("good").directory.exists()
    run_import(reader, "builtin:tiny", "bad")
    assert reader.resolve("bad").name == "bad"
    assert {path.name for path in (store.root / "models").iterdir()} >= {
        reader.resolve(name).directory.name for name in ("good", "bad", "third")
    }


def test_a_spoilt_entry_can_be_removed(store: Store) -> None:
    checkpoint = run_import(store, "builtin:tiny", "bad")
    (store.root / "names" / "bad.json").write_text("{")
    reader = Store(store.root)
    assert reader.remove("bad") > 0
    assert not checkpoint.directory.exists()
    with pytest.raises(ModelNotFound):
        reader.resolve("bad")


def test_a_reader_carries_neither_torch_nor_transformers_nor_numpy(store: Store) -> None:
    run_import(store, "builtin:tiny")
    code = (
        "import sys; from pathlib import Path; from sllmd.store.store import Store;"
        f"Store(Path({str(store.root)!r})).resolve('m');"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_daemons_of_one_store_know_of_each_other(store: Store) -> None:
    store.prepare()
    with store.attended() as first, Store(store.root).attended() as second:
        assert (first, second) == (False, True)
    with store.attended() as again:
        assert not again

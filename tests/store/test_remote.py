import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash

from sllmd.core.errors import (
    ChecksumMismatch,
    InvalidRequest,
    MalformedCheckpoint,
    SllmdError,
    SourceChanged,
    SourceUnavailable,
    StoreError,
    UnsupportedCheckpoint,
)
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.settings import ImportSettings
from sllmd.store.store import Store
from tests.store.models import (
    CHUNK_BYTES,
    as_bytes,
    llama_tensors,
    read_back,
    run_import,
    snapshot,
    write_index,
    write_model,
    write_sharded,
)
from tests.store.serving import Manners, serve

WEIGHTS = "model.safetensors"


@pytest.fixture
def manners() -> Manners:
    return Manners()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "remote")


@pytest.fixture
def url(source: Path, manners: Manners) -> Iterator[str]:
    with serve(source, manners) as url:
        yield url


def bring(checkpoint: Checkpoint, source: Path) -> dict[str, list[str]]:
    """What a loader does: all data files into the data directory, and the checksums of their chunks."""
    digests = {}
    for file in (file for partition in checkpoint.manifest.partitions for file in partition.files):
        target = checkpoint.data_directory / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / file.path, target)
        data = target.read_bytes()
        pieces = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
        digests[file.path] = [xxhash.xxh3_128_hexdigest(piece) for piece in pieces]
    return digests


def test_registering_reads_headers_and_small_files_only(store: Store, url: str, manners: Manners) -> None:
    checkpoint = run_import(store, url + "/")
    assert checkpoint.remote_url == url
    assert checkpoint.manifest.small_files == ("config.json", "tokenizer.json")
    assert checkpoint.validators() == {WEIGHTS: '"1"'}
    assert manners.requests.count(WEIGHTS) == 1
    assert not checkpoint.data_directory.exists()
    assert store.models()[0].kind == "remote"
    with pytest.raises(StoreError, match="no bytes of it are here"):
        store.verify("m", lambda done, total: None)


def test_when_the_bytes_have_arrived_the_model_is_stored(store: Store, url: str, source: Path) -> None:
    checkpoint = run_import(store, url)
    store.alias("a", "m")
    digests = bring(checkpoint, source)
    (checkpoint.data_directory / ".journal").write_text("a loader's own")
    done = store.complete_remote(checkpoint, digests)
    assert done.remote_url is None
    assert done.manifest.digest == checkpoint.manifest.digest
    assert read_back(done) == as_bytes(llama_tensors())
    assert Store(store.root).resolve("a") == done
    store.verify("m", lambda done, total: None)
    assert [path.name for path in (store.root / "models").iterdir()] == [done.directory.name]
    assert list((store.root / "downloads").iterdir()) == []
    assert not (done.directory / ".journal").exists()


def test_shards_come_along(store: Store, tmp_path: Path, manners: Manners) -> None:
    tensors = llama_tensors()
    names = list(tensors)
    source = write_sharded(
        tmp_path / "sharded",
        {
            "a b.safetensors": {n: tensors[n] for n in names[:4]},
            "s/c.safetensors": {n: tensors[n] for n in names[4:]},
        },
    )
    with serve(source, manners) as url:
        checkpoint = run_import(store, url)
    assert set(checkpoint.validators()) == {"a b.safetensors", "s/c.safetensors"}
    assert read_back(store.complete_remote(checkpoint, bring(checkpoint, source))) == as_bytes(tensors)


def test_a_header_longer_than_the_first_read_is_read_on(
    store: Store, tmp_path: Path, manners: Manners
) -> None:
    tensors = {f"tensor-{i:04}-{'x' * 200}": np.zeros(1, np.float32) for i in range(1200)}
    with serve(write_model(tmp_path / "many", tensors), manners) as url:
        assert len(run_import(store, url).manifest.tensors) == 1200
        manners.changes = WEIGHTS
        with pytest.raises(SourceChanged, match="changed while it was read"):
            run_import(store, url)


def test_another_stores_directory_keeps_its_digest_and_checksums(
    store: Store, tmp_path: Path, source: Path, manners: Manners
) -> None:
    original = run_import(Store(tmp_path / "theirs"), source, partitions=2)
    with serve(original.directory, manners) as url:
        checkpoint = run_import(store, url)
    assert checkpoint.manifest == original.manifest
    digests = bring(checkpoint, original.directory)
    (checkpoint.data_directory / "tensors.1.bin").write_bytes(b"")
    with pytest.raises(SourceUnavailable, match=r"tensors\.1\.bin of `m` did not arrive whole"):
        store.complete_remote(checkpoint, digests)
    bring(checkpoint, original.directory)
    wrong = digests | {"tensors.0.bin": ["0" * 32, *digests["tensors.0.bin"][1:]]}
    with pytest.raises(ChecksumMismatch, match=r"tensors\.0\.bin, chunk 0"):
        store.complete_remote(checkpoint, wrong)
    assert store.complete_remote(checkpoint, digests).manifest == original.manifest


@pytest.mark.parametrize("digests", [{}, {WEIGHTS: []}, {WEIGHTS: ["0" * 32]}, {"other": ["0" * 32] * 9}])
def test_checksums_that_do_not_cover_the_files(store: Store, url: str, source: Path, digests: dict) -> None:
    checkpoint = run_import(store, url)
    bring(checkpoint, source)
    with pytest.raises(SourceUnavailable, match="do not cover"):
        store.complete_remote(checkpoint, digests)
    assert store.models()[0].kind == "remote"


def test_a_bad_copy_of_a_remote_model_is_fetched_again(store: Store, url: str, source: Path) -> None:
    remote = run_import(store, url)
    stored = store.complete_remote(remote, bring(remote, source))
    moved_to = store.quarantine(stored, WEIGHTS, 0)
    assert (Path(moved_to) / WEIGHTS).exists()
    again = store.resolve("m")
    assert again.remote_url == url
    assert again.manifest == stored.manifest
    assert read_back(store.complete_remote(again, bring(again, source))) == as_bytes(llama_tensors())


def test_a_download_that_turns_out_bad_is_dropped(store: Store, url: str, source: Path) -> None:
    checkpoint = run_import(store, url)
    bring(checkpoint, source)
    assert store.quarantine(checkpoint, WEIGHTS, 0) == ""
    assert not checkpoint.data_directory.exists()
    assert store.resolve("m") == checkpoint


def test_a_model_that_was_removed_or_replaced_meanwhile_is_not_published(
    store: Store, url: str, source: Path
) -> None:
    checkpoint = run_import(store, url)
    digests = bring(checkpoint, source)
    replaced = run_import(store, source, replace=True)
    with pytest.raises(SllmdError):
        store.complete_remote(checkpoint, digests)
    assert store.resolve("m") == replaced
    store.remove("m")
    bring(checkpoint, source)
    with pytest.raises(StoreError, match="removed or replaced"):
        store.complete_remote(checkpoint, digests)


@pytest.mark.parametrize(
    ("faults", "error", "fault"),
    [
        ({"no_ranges": True}, SourceUnavailable, "ignores Range requests"),
        ({"status": {"config.json": 404}}, SourceUnavailable, r"config\.json is not there"),
        ({"status": {WEIGHTS: 404}}, SourceUnavailable, r"model\.safetensors is not there"),
        ({"status": {WEIGHTS: 403}}, SourceUnavailable, "answers 403"),
        ({"status": {"tokenizer.json": 500}}, SourceUnavailable, r"tokenizer\.json answers 500"),
        ({"wrong_total": WEIGHTS}, MalformedCheckpoint, "truncated|sent other bytes"),
        ({"cuts_off": WEIGHTS}, SourceUnavailable, WEIGHTS),
        ({"cuts_off": "config.json"}, SourceUnavailable, r"config\.json"),
        ({"short": WEIGHTS}, SourceUnavailable, "sent other bytes"),
    ],
)
def test_a_server_that_refuses_cuts_off_or_lies(
    store: Store, url: str, manners: Manners, faults: dict, error: type, fault: str
) -> None:
    for name, value in faults.items():
        setattr(manners, name, value)
    with pytest.raises((error, SourceUnavailable), match=fault):
        run_import(store, url)
    assert snapshot(store.root) == {}
    assert list((store.root / "partial").iterdir()) == []


def test_a_server_that_says_nothing(store: Store, url: str, manners: Manners) -> None:
    manners.silent = "config.json"
    with pytest.raises(SourceUnavailable, match="timed out"):
        run_import(store, url, settings=ImportSettings(http_timeout_seconds=0.2))


def test_a_server_that_is_not_there(store: Store, source: Path, manners: Manners) -> None:
    with serve(source, manners) as url:
        pass
    with pytest.raises(SourceUnavailable, match="refused"):
        run_import(store, url)


def test_a_remote_index_that_leaves_its_directory(
    store: Store, url: str, source: Path, manners: Manners
) -> None:
    write_index(source, {"a": "../../secret.safetensors"})
    with pytest.raises(MalformedCheckpoint, match="points outside"):
        run_import(store, url)
    assert not any("secret" in request for request in manners.requests)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x"])
def test_a_remote_manifest_that_leaves_its_directory(
    store: Store, tmp_path: Path, source: Path, manners: Manners, path: str
) -> None:
    original = run_import(Store(tmp_path / "theirs"), source)
    manifest = original.directory / "manifest.json"
    text = manifest.read_text()
    with serve(original.directory, manners) as url:
        for name in ("tensors.0.bin", "tokenizer.json"):
            manifest.write_text(text.replace(name, path))
            with pytest.raises(MalformedCheckpoint, match=r"points outside"):
                run_import(store, url)
    assert store.models() == []


def test_a_remote_manifest_that_does_not_fit_its_digest(
    store: Store, tmp_path: Path, source: Path, manners: Manners
) -> None:
    original = run_import(Store(tmp_path / "theirs"), source)
    (original.directory / "tokenizer.json").write_text("{ }")
    with serve(original.directory, manners) as url, pytest.raises(MalformedCheckpoint, match="digest"):
        run_import(store, url)


def test_what_is_remote_cannot_be_split_or_served_in_place(store: Store) -> None:
    for options in ({"partitions": 2}, {"in_place": True}):
        with pytest.raises(InvalidRequest, match="as it is"):
            run_import(store, "http://127.0.0.1:1/m", **options)


def test_a_full_disk_is_the_stores_fault_not_the_servers(store: Store, url: str, tmp_path: Path) -> None:
    """The directory for small files cannot be made: what the system says must reach the user."""
    store.prepare()
    (store.root / "partial").rmdir()
    (store.root / "partial").symlink_to(tmp_path / "gone" / "gone")
    with pytest.raises(StoreError, match=r"cannot (create the store|import)"):
        run_import(store, url)
    (store.root / "partial").unlink()


def test_the_page_of_a_model_on_a_hub_stands_for_its_main_revision(store: Store, tmp_path: Path) -> None:
    write_model(tmp_path / "hub" / "resolve" / "main")
    with serve(tmp_path / "hub", Manners()) as url:
        assert run_import(store, url).remote_url == f"{url}/resolve/main"


@pytest.mark.parametrize("page", ["/models/m", "/models/m/resolve/main"])
def test_a_query_stays_behind_every_file(
    store: Store, source: Path, url: str, manners: Manners, page: str, tmp_path: Path
) -> None:
    if page.endswith("main"):
        shutil.copytree(source, source / "resolve" / "main")
        (source / "config.json").unlink()
    checkpoint = run_import(store, f"{url}?token=a%20b")
    assert checkpoint.remote_url == f"{url.removesuffix('/models/m')}{page}?token=a%20b"
    assert set(manners.queries) == {"token=a%20b"}


def test_importing_goes_through_the_proxy_of_the_environment(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", url.removesuffix("/models/m"))
    assert run_import(store, "http://models.invalid/models/m").remote_url == "http://models.invalid/models/m"


def test_a_remote_model_without_a_tokenizer_is_refused(store: Store, source: Path, url: str) -> None:
    (source / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedCheckpoint, match="has no tokenizer"):
        run_import(store, url)
    assert store.models() == []

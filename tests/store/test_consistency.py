from pathlib import Path

import pytest

from sllmd.core.errors import MalformedCheckpoint
from sllmd.store.consistency import check_manifest
from sllmd.store.manifest import Manifest, Source
from sllmd.store.store import Store
from tests.store.models import CHUNK_BYTES, run_import, write_model


@pytest.fixture
def manifest(store: Store, tmp_path: Path) -> Manifest:
    return run_import(store, write_model(tmp_path / "m"), partitions=2).manifest


def with_tensor(manifest: Manifest, **changes: object) -> Manifest:
    tensors = (manifest.tensors[0].model_copy(update=changes), *manifest.tensors[1:])
    return manifest.model_copy(update={"tensors": tensors})


def with_file(manifest: Manifest, **changes: object) -> Manifest:
    first = manifest.partitions[0]
    files = (first.files[0].model_copy(update=changes),)
    changed = first.model_copy(update={"files": files})
    return manifest.model_copy(update={"partitions": (changed, *manifest.partitions[1:])})


def test_what_an_import_writes_is_consistent(manifest: Manifest) -> None:
    check_manifest(manifest, "manifest.json")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"offset_bytes": -4}, "leaves its partition"),
        ({"offset_bytes": 2**40}, "leaves its partition"),
        ({"offset_bytes": 2}, "not aligned"),
        ({"partition": 2}, "lies in no partition"),
        ({"partition": -1}, "lies in no partition"),
        ({"size_bytes": 4}, "another size"),
        ({"shape": (-50, -24)}, "another size"),
        ({"name": "model.norm.weight"}, "lists a tensor twice"),
    ],
)
def test_a_tensor_that_cannot_be(manifest: Manifest, changes: dict, fault: str) -> None:
    with pytest.raises(MalformedCheckpoint, match=rf"manifest\.json.*{fault}"):
        check_manifest(with_tensor(manifest, **changes), "manifest.json")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"base_bytes": -4096}, "impossible base"),
        ({"base_bytes": 100}, "impossible base"),
        ({"base_bytes": 4096}, "leave their partition"),
        ({"size_bytes": 2**40, "chunk_digests": ()}, "leave their partition"),
        ({"size_bytes": -1}, "impossible base"),
        ({"chunk_digests": ("0" * 32,)}, "do not cover"),
        ({"path": "../x"}, "points outside"),
        ({"path": "tensors.1.bin"}, "lists a file twice"),
    ],
)
def test_a_file_that_cannot_be(manifest: Manifest, changes: dict, fault: str) -> None:
    with pytest.raises(MalformedCheckpoint, match=fault):
        check_manifest(with_file(manifest, **changes), "manifest.json")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"chunk_bytes": 0}, "chunk_bytes"),
        ({"chunk_bytes": CHUNK_BYTES + 1}, "chunk_bytes"),
        ({"partitions": ()}, "no partitions"),
        ({"ties": {"x": "gone"}}, "ties a tensor"),
        ({"ties": {"model.norm.weight": "model.norm.weight"}}, "lists a tensor twice"),
        ({"small_files": ("../x",)}, "points outside"),
        ({"small_files": ("id_rsa",)}, "no small file"),
    ],
)
def test_a_manifest_that_cannot_be(manifest: Manifest, changes: dict, fault: str) -> None:
    with pytest.raises(MalformedCheckpoint, match=fault):
        check_manifest(manifest.model_copy(update=changes), "manifest.json")


@pytest.mark.parametrize(
    ("fingerprint", "fault"),
    [("junk", "is not valid JSON"), ("[1]", "is not a JSON object"), ('{"f": 1}', "that is not a text")],
)
def test_versions_of_remote_files_that_cannot_be_read(
    manifest: Manifest, fingerprint: str, fault: str
) -> None:
    source = Source(kind="http", location="http://h/m", fingerprint=fingerprint)
    with pytest.raises(MalformedCheckpoint, match=fault):
        check_manifest(manifest.model_copy(update={"source": source}), "manifest.json")


def test_files_that_overlap(manifest: Manifest) -> None:
    first = manifest.partitions[0]
    file = first.files[0]
    twin = file.model_copy(update={"path": "twin.bin"})
    changed = first.model_copy(update={"files": (file, twin), "span_bytes": 2 * first.span_bytes})
    with pytest.raises(MalformedCheckpoint, match="overlap"):
        check_manifest(manifest.model_copy(update={"partitions": (changed,)}), "manifest.json")

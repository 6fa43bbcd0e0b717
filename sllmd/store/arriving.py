"""A remote checkpoint whose bytes have come: whether all are there, and what it needs to be published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sllmd.core.errors import ChecksumMismatch, SourceUnavailable
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.directory import copy_small_files, write_manifest
from sllmd.store.manifest import DataFile, Manifest


def arrived(checkpoint: Checkpoint, chunk_digests: Mapping[str, Sequence[str]]) -> Manifest:
    """Its manifest with what its chunks hashed to. Raises SourceUnavailable, and ChecksumMismatch when the
    manifest knew better."""
    manifest = _with_chunk_digests(checkpoint.manifest, chunk_digests)
    for file in checkpoint.missing_files():
        raise SourceUnavailable(f"{file.path} of `{checkpoint.name}` did not arrive whole")
    return manifest


def complete(staging: Path, manifest: Manifest, small_files_from: Path) -> None:
    """Make the directory of data files that of a checkpoint, without what a loader kept there for itself.

    Raises OSError.
    """
    kept = {staging / file.path for file in manifest.data_files}
    for path in list(staging.rglob("*")):
        if path not in kept and not path.is_dir():
            path.unlink()
    copy_small_files(small_files_from, staging, manifest.small_files)
    write_manifest(staging, manifest)


def _with_chunk_digests(manifest: Manifest, chunk_digests: Mapping[str, Sequence[str]]) -> Manifest:
    def completed(file: DataFile) -> DataFile:
        found = tuple(chunk_digests.get(file.path, ()))
        if len(found) != -(-file.size_bytes // manifest.chunk_bytes):
            raise SourceUnavailable(f"{file.path}: {len(found)} chunk checksums do not cover the file")
        for index, (digest, expected) in enumerate(zip(found, file.chunk_digests, strict=False)):
            if digest != expected:
                raise ChecksumMismatch(file=file.path, chunk_index=index)
        return file.model_copy(update={"chunk_digests": found})

    partitions = tuple(
        partition.model_copy(update={"files": tuple(completed(file) for file in partition.files)})
        for partition in manifest.partitions
    )
    return manifest.model_copy(update={"partitions": partitions})

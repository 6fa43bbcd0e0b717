"""Whether a checkpoint's bytes are still what was imported."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import xxhash

from sllmd.core.errors import ChecksumMismatch, MalformedCheckpoint
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.digest import manifest_digest
from sllmd.store.directory import MANIFEST_FILE, small_digests
from sllmd.store.manifest import DataFile

VerifyProgress = Callable[[int, int], None]
"""Called with bytes verified and bytes in all."""


def verify_checkpoint(checkpoint: Checkpoint, progress: VerifyProgress) -> None:
    """Read every byte and hold it against the manifest.

    Raises ChecksumMismatch naming file and chunk, MalformedCheckpoint for a file of the wrong size, a
    missing one, or small files and manifest that do not belong together.
    """
    manifest = checkpoint.manifest
    if (
        manifest_digest(manifest, small_digests(checkpoint.directory, manifest.small_files))
        != manifest.digest
    ):
        raise MalformedCheckpoint(
            f"{checkpoint.directory / MANIFEST_FILE} and the small files beside it are not what was imported",
            hint="import the model again",
        )
    done_bytes = 0

    def advance(count: int) -> None:
        nonlocal done_bytes
        done_bytes += count
        progress(done_bytes, manifest.size_bytes)

    for partition in manifest.partitions:
        for file in partition.files:
            _verify_file(checkpoint.data_directory / file.path, file, manifest.chunk_bytes, advance)


def hash_chunks(path: Path, chunk_bytes: int, progress: Callable[[int], None]) -> tuple[str, ...]:
    """xxh3-128 of each chunk of a file; ``progress`` gets the bytes of each."""
    digests = []
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        buffer = memoryview(bytearray(chunk_bytes))
        while count := _read_full(file.fileno(), buffer):
            digests.append(xxhash.xxh3_128_hexdigest(buffer[:count]))
            progress(count)
    return tuple(digests)


def _verify_file(path: Path, file: DataFile, chunk_bytes: int, advance: Callable[[int], None]) -> None:
    try:
        size_bytes = path.stat().st_size
    except FileNotFoundError as error:
        raise MalformedCheckpoint(f"{path} is missing", hint="import the model again") from error
    if size_bytes != file.size_bytes:
        raise MalformedCheckpoint(
            f"{path} has {size_bytes} bytes, {file.size_bytes} were imported", hint="import the model again"
        )
    found = hash_chunks(path, chunk_bytes, advance)
    for index, (digest, expected) in enumerate(zip(found, file.chunk_digests, strict=True)):
        if digest != expected:
            raise ChecksumMismatch(file=file.path, chunk_index=index)


def _read_full(descriptor: int, buffer: memoryview) -> int:
    """Fill ``buffer`` unless the file ends; bytes read."""
    filled = 0
    while filled < len(buffer):
        count = os.readv(descriptor, [buffer[filled:]])
        if count == 0:
            break
        filled += count
    return filled

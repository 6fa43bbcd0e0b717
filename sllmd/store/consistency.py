"""Whether a manifest contradicts itself. Pure.

A manifest may come from another machine. What a loader and an engine compute from it are addresses, so
nothing in it may point outside its partition.
"""

from __future__ import annotations

import math

from sllmd.core.errors import MalformedCheckpoint
from sllmd.store.header import ITEM_BYTES
from sllmd.store.manifest import ALIGNMENT_BYTES, DataFile, Manifest, Partition, Source, Tensor
from sllmd.store.source import SMALL_FILES, check_relative, parse_json_object


def check_manifest(manifest: Manifest, file: str) -> None:
    """Raise MalformedCheckpoint, naming ``file``, unless every address lies where it should."""
    if manifest.chunk_bytes <= 0 or manifest.chunk_bytes % ALIGNMENT_BYTES:
        raise MalformedCheckpoint(f"{file}: chunk_bytes is not a multiple of {ALIGNMENT_BYTES}")
    if not manifest.partitions:
        raise MalformedCheckpoint(f"{file} has no partitions")
    for partition in manifest.partitions:
        _check_partition(partition, manifest.chunk_bytes, file)
    paths = [data_file.path for partition in manifest.partitions for data_file in partition.files]
    if len(set(paths)) != len(paths):
        raise MalformedCheckpoint(f"{file} lists a file twice")
    for tensor in manifest.tensors:
        _check_tensor(tensor, manifest, file)
    names = {tensor.name for tensor in manifest.tensors}
    if len(names) != len(manifest.tensors) or not names.isdisjoint(manifest.ties):
        raise MalformedCheckpoint(f"{file} lists a tensor twice")
    if not names.issuperset(manifest.ties.values()):
        raise MalformedCheckpoint(f"{file} ties a tensor to one that is not there")
    _check_versions(manifest.source, file)
    for name in manifest.small_files:
        check_relative(name, file)
        if name not in SMALL_FILES:
            raise MalformedCheckpoint(f"{file} lists {name}, which is no small file")


def _check_versions(source: Source, file: str) -> None:
    if source.kind != "http":
        return
    versions = parse_json_object(source.fingerprint.encode(), f"{file}: source.fingerprint")
    if not all(isinstance(version, str) for version in versions.values()):
        raise MalformedCheckpoint(f"{file}: source.fingerprint names a version that is not a text")


def _check_partition(partition: Partition, chunk_bytes: int, file: str) -> None:
    files = sorted(partition.files, key=lambda data_file: data_file.base_bytes)
    for data_file in files:
        check_relative(data_file.path, file)
        if data_file.base_bytes < 0 or data_file.size_bytes < 0 or data_file.base_bytes % ALIGNMENT_BYTES:
            raise MalformedCheckpoint(f"{file}: {data_file.path} has an impossible base or size")
        chunk_count = -(-data_file.size_bytes // chunk_bytes)
        if data_file.chunk_digests and len(data_file.chunk_digests) != chunk_count:
            raise MalformedCheckpoint(f"{file}: the checksums of {data_file.path} do not cover it")
    ends = [*(data_file.base_bytes for data_file in files[1:]), partition.span_bytes]
    if any(_end(data_file) > end for data_file, end in zip(files, ends, strict=False)):
        raise MalformedCheckpoint(f"{file}: files overlap or leave their partition")


def _end(data_file: DataFile) -> int:
    return data_file.base_bytes + data_file.size_bytes


def _check_tensor(tensor: Tensor, manifest: Manifest, file: str) -> None:
    if not 0 <= tensor.partition < len(manifest.partitions):
        raise MalformedCheckpoint(f"{file}: tensor {tensor.name} lies in no partition")
    span_bytes = manifest.partitions[tensor.partition].span_bytes
    expected = math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
    if min((*tensor.shape, 0)) < 0 or tensor.size_bytes != expected:
        raise MalformedCheckpoint(f"{file}: tensor {tensor.name} has another size than its shape")
    if tensor.offset_bytes < 0 or tensor.offset_bytes + tensor.size_bytes > span_bytes:
        raise MalformedCheckpoint(f"{file}: tensor {tensor.name} leaves its partition")
    if tensor.offset_bytes % ITEM_BYTES[tensor.dtype]:
        raise MalformedCheckpoint(f"{file}: tensor {tensor.name} is not aligned to its element size")

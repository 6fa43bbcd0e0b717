"""What a checkpoint is, said in data. Pure.

A checkpoint is k *partitions*, one per device it is spread over. A partition is an address space of
``span_bytes``; its data files lie in it at aligned bases, and a tensor is ``partition`` + ``offset_bytes``.
sllmd's own format has one file per partition; a safetensors directory served in place has one partition
of one or more files. A loader fills the address space, an engine makes views at base + offset: neither
parses a format (paper, section 4.1).
"""

from __future__ import annotations

from typing import Any, Literal

from sllmd.core.frozen import Frozen
from sllmd.core.ids import Digest

FORMAT_VERSION = 1
ALIGNMENT_BYTES = 4096
"""Tensors and files start at multiples of this: what O_DIRECT and mmap need."""
CHUNK_BYTES = 16 * 1024 * 1024
"""Unit of reading, checking and copying; a multiple of the alignment."""


def align_up(count: int) -> int:
    """``count`` rounded up to the alignment."""
    return -(-count // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def align_down(count: int) -> int:
    """``count`` rounded down to the alignment."""
    return count // ALIGNMENT_BYTES * ALIGNMENT_BYTES


Dtype = Literal[
    "BOOL",
    "U8",
    "I8",
    "I16",
    "U16",
    "F16",
    "BF16",
    "I32",
    "U32",
    "F32",
    "F64",
    "I64",
    "U64",
    "F8_E4M3",
    "F8_E5M2",
]


class Tensor(Frozen):
    """Where one tensor lies. Contiguous, row major."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    partition: int
    offset_bytes: int
    """In the partition's address space."""
    size_bytes: int


class DataFile(Frozen):
    """One file of a partition."""

    path: str
    """Relative to the checkpoint's root (a directory or a URL); never leaves it."""
    base_bytes: int
    """Where the file starts in the partition's address space; a multiple of ALIGNMENT_BYTES."""
    size_bytes: int
    chunk_digests: tuple[str, ...] = ()
    """xxh3-128 in hex of each CHUNK_BYTES of the file, the last one shorter; empty: not known yet."""


class Partition(Frozen):
    """An address space and the files that fill it."""

    span_bytes: int
    files: tuple[DataFile, ...]


class Source(Frozen):
    """Where a checkpoint came from."""

    kind: Literal["safetensors", "torch", "gguf", "http", "fake"]
    location: str
    fingerprint: str
    """Changes when the source does: sizes and times of files, or ETags."""


class Manifest(Frozen):
    """A checkpoint: its tensors in execution order, its partitions, what an engine needs to know."""

    format_version: int
    digest: Digest
    source: Source
    architecture: str
    """The transformers class, e.g. ``LlamaForCausalLM``; ``fake`` for the fake engine."""
    config: dict[str, Any]
    """The model's config.json."""
    tensors: tuple[Tensor, ...]
    ties: dict[str, str]
    """Name of a tensor that is not stored -> name of the stored one it equals."""
    partitions: tuple[Partition, ...]
    chunk_bytes: int = CHUNK_BYTES
    small_files: tuple[str, ...] = ()
    """tokenizer.json, generation_config.json, chat templates, ...: beside the manifest."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all data files."""
        return sum(file.size_bytes for file in self.data_files)

    @property
    def data_files(self) -> list[DataFile]:
        """Of all partitions."""
        return [file for partition in self.partitions for file in partition.files]

    @property
    def span_bytes(self) -> int:
        """Bytes of all address spaces: what the DRAM tier must provide."""
        return sum(partition.span_bytes for partition in self.partitions)

"""Tensors over memory that somebody else owns.

Owns: turning a manifest and mapped partitions into torch views, without copying. Knows nothing of models,
files or how the memory was filled. The views alias the memory: it must stay mapped while they live.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from sllmd.core.errors import MalformedCheckpoint
from sllmd.store.manifest import Manifest, Tensor

_log = structlog.get_logger(__name__)

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class Weights:
    """A checkpoint's tensors by name, ties included."""

    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def over_memory(cls, manifest: Manifest, partitions: Sequence[Any]) -> Weights:
        """Views over one buffer (mmap, memoryview, bytearray, uint8 tensor) per partition.

        Nothing is read: the bytes may arrive later. Raises MalformedCheckpoint when the buffers do not
        span what the manifest says.
        """
        bases = tuple(_as_bytes(partition) for partition in partitions)
        return cls(view_tensors(manifest, bases))


def view_tensors(manifest: Manifest, bases: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name -> view at base + offset. ``bases`` are uint8 tensors, one per partition, on any device."""
    if len(bases) != len(manifest.partitions):
        raise MalformedCheckpoint(
            f"the checkpoint has {len(manifest.partitions)} partitions, memory was given for {len(bases)}"
        )
    tensors = {tensor.name: _view(tensor, bases[tensor.partition]) for tensor in manifest.tensors}
    for name, stored in manifest.ties.items():
        if stored not in tensors:
            raise MalformedCheckpoint(f"tensor {name} is tied to {stored}, which is not stored")
        tensors[name] = tensors[stored]
    return tensors


def majority_dtype(manifest: Manifest) -> torch.dtype:
    """The floating-point type that most of the checkpoint's bytes have; what ``auto`` means."""
    size_by_dtype: dict[str, int] = {}
    for tensor in manifest.tensors:
        if TORCH_DTYPES[tensor.dtype].is_floating_point:
            size_by_dtype[tensor.dtype] = size_by_dtype.get(tensor.dtype, 0) + tensor.size_bytes
    if not size_by_dtype:
        raise MalformedCheckpoint("the checkpoint holds no floating-point tensor")
    return TORCH_DTYPES[max(size_by_dtype, key=size_by_dtype.__getitem__)]


def _as_bytes(partition: Any) -> torch.Tensor:
    if isinstance(partition, torch.Tensor):
        return partition
    return torch.frombuffer(partition, dtype=torch.uint8)


def _view(tensor: Tensor, base: torch.Tensor) -> torch.Tensor:
    dtype = TORCH_DTYPES[tensor.dtype]
    end = tensor.offset_bytes + tensor.size_bytes
    if end > base.numel():
        raise MalformedCheckpoint(
            f"tensor {tensor.name} ends at byte {end} of partition {tensor.partition}, "
            f"which has {base.numel()}"
        )
    raw = base[tensor.offset_bytes : end]
    if (base.data_ptr() + tensor.offset_bytes) % dtype.itemsize:
        # Only in files served in place: a safetensors header may have any length.
        _log.warning("tensor copied", tensor=tensor.name, reason="not aligned to its element size")
        raw = raw.clone()
    return raw.view(dtype).view(tensor.shape)

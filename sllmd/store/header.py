"""The header of a safetensors file, read strictly. Pure but for ``read_header``.

A file is 8 bytes of header length, a JSON header, and the tensors' bytes. Everything that the format
forbids is refused here with the file's name, so that nobody after this has to doubt an offset: unknown
keys and types, sizes that do not fit the shape, overlaps, holes, bytes missing or left over.
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from sllmd.core.errors import MalformedCheckpoint, UnsupportedCheckpoint
from sllmd.store.manifest import Dtype

PREFIX_BYTES = 8
HEADER_BYTES_MAX = 100_000_000
"""What the safetensors library accepts; a model with 100,000 tensors stays under a tenth of it."""
TENSOR_NAME_CHARACTERS_MAX = 1024

ITEM_BYTES: dict[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}
assert set(ITEM_BYTES) == set(get_args(Dtype))
_KNOWN_UNSERVED = ("F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64")


@dataclass(frozen=True, slots=True)
class HeaderTensor:
    """One tensor of a file; ``offset_bytes`` counts from the file's start."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What one file holds, in the order of its bytes."""

    file: str
    file_bytes: int
    tensors: tuple[HeaderTensor, ...]


def read_header(path: Path, file: str) -> Header:
    """The header of a file on disk, called ``file`` in messages.

    Raises MalformedCheckpoint and UnsupportedCheckpoint; OSError as the system does.
    """
    # O_NONBLOCK: opening a FIFO somebody put there must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise MalformedCheckpoint(f"{file} is not a regular file")
        length = parse_length(os.pread(descriptor, PREFIX_BYTES, 0), file=file, file_bytes=status.st_size)
        return parse_header(os.pread(descriptor, length, PREFIX_BYTES), file=file, file_bytes=status.st_size)
    finally:
        os.close(descriptor)


def parse_length(prefix: bytes, *, file: str, file_bytes: int) -> int:
    """Bytes of the JSON header that follows ``prefix``, the file's first 8 bytes."""
    if file_bytes == 0:
        raise MalformedCheckpoint(f"{file} is empty", hint="copy or download it again")
    if file_bytes < PREFIX_BYTES or len(prefix) < PREFIX_BYTES:
        raise MalformedCheckpoint(f"{file} is truncated: {file_bytes} bytes are no safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > HEADER_BYTES_MAX:
        raise MalformedCheckpoint(f"{file} is not a safetensors file: its header would be {length} bytes")
    if length < 2 or PREFIX_BYTES + length > file_bytes:
        raise MalformedCheckpoint(
            f"{file} is truncated: its header is {length} bytes, the file {file_bytes}",
            hint="copy or download it again",
        )
    return length


def parse_header(text: bytes, *, file: str, file_bytes: int) -> Header:
    """The tensors that the header ``text`` describes, checked against the file's size."""
    entries = _parse_json(text, file)
    entries.pop("__metadata__", None)
    data_start = PREFIX_BYTES + len(text)
    tensors = [_tensor(name, entry, data_start, file) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset_bytes, tensor.size_bytes))
    position = data_start
    for tensor in tensors:
        if tensor.offset_bytes != position:
            fault = "overlaps another" if tensor.offset_bytes < position else "leaves a hole before it"
            raise MalformedCheckpoint(f"{file}: tensor {tensor.name} {fault}")
        position += tensor.size_bytes
    if position > file_bytes:
        raise MalformedCheckpoint(
            f"{file} is truncated: its header describes {position} bytes, it has {file_bytes}",
            hint="copy or download it again",
        )
    if position < file_bytes:
        raise MalformedCheckpoint(
            f"{file} has {file_bytes - position} bytes that its header does not describe"
        )
    return Header(file=file, file_bytes=file_bytes, tensors=tuple(tensors))


def _parse_json(text: bytes, file: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise MalformedCheckpoint(f"{file}: a name is in the header twice")
        return keys

    if not text.startswith(b"{"):
        raise MalformedCheckpoint(f"{file} is not a safetensors file: its header is no JSON object")
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise MalformedCheckpoint(f"{file}: the header is not valid JSON: {error}") from error
    return cast("dict[str, Any]", entries)


def _tensor(name: str, entry: Any, data_start: int, file: str) -> HeaderTensor:
    if not name or len(name) > TENSOR_NAME_CHARACTERS_MAX or not name.isprintable():
        raise MalformedCheckpoint(f"{file}: {name[:80]!r} is no tensor name")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise MalformedCheckpoint(f"{file}: tensor {name} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        kind = UnsupportedCheckpoint if dtype in _KNOWN_UNSERVED else MalformedCheckpoint
        raise kind(f"{file}: tensor {name} has dtype {dtype!r}, which sllmd does not know")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise MalformedCheckpoint(f"{file}: tensor {name} has a malformed shape or offsets")
    size_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != size_bytes:
        raise MalformedCheckpoint(
            f"{file}: tensor {name} of {dtype} {shape} needs {size_bytes} bytes, "
            f"its offsets hold {offsets[1] - offsets[0]}"
        )
    return HeaderTensor(name, cast("Dtype", dtype), tuple(shape), data_start + offsets[0], size_bytes)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)

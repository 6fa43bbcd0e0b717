"""A safetensors checkpoint before it is imported, said in data, and its consistency. Pure.

Local directories and remote URLs both become a ``SourceCheckpoint``: they differ in how bytes are read,
not in what is right and wrong.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

from sllmd.core.errors import MalformedCheckpoint, UnsupportedCheckpoint
from sllmd.store.header import Header
from sllmd.store.manifest import Dtype

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILE = "tokenizer.json"
SMALL_FILES = (
    CONFIG_FILE,
    "generation_config.json",
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What the text room and the engine read beside the weights; copied into the store when there."""
LEGACY_TOKENIZER_FILES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)
"""Signs of a tokenizer that is not yet a ``tokenizer.json``; the converter makes one."""
SMALL_FILE_BYTES_MAX = 128 * 1024 * 1024
"""Largest small file; the biggest tokenizer.json in use has about 35 MB."""
DATA_FILES_MAX = 4096
"""Shards of one checkpoint; the largest published models have a few hundred."""


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor where it lies now."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    file: str
    offset_bytes: int
    """In the file."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SourceCheckpoint:
    """A checked checkpoint: every tensor lies inside its file."""

    config: dict[str, Any]
    architecture: str
    tensors: tuple[SourceTensor, ...]
    file_bytes: Mapping[str, int]
    """Data files by path relative to the source's root -> size."""
    fingerprint: str

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors)


def parse_json_object(text: bytes, file: str) -> dict[str, Any]:
    """The JSON object in ``text``. Raises MalformedCheckpoint naming ``file``."""
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedCheckpoint(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise MalformedCheckpoint(f"{file} is not a JSON object")
    return cast("dict[str, Any]", value)


def parse_config(text: bytes) -> tuple[dict[str, Any], str]:
    """The model's config and its transformers class.

    Raises MalformedCheckpoint, and UnsupportedCheckpoint for quantised weights.
    """
    config = parse_json_object(text, CONFIG_FILE)
    names = config.get("architectures")
    if (
        not isinstance(names, list)
        or not names
        or not isinstance(names[0], str)
        or not names[0].isidentifier()
    ):
        raise MalformedCheckpoint(
            f"{CONFIG_FILE} names no architecture",
            hint='it needs for example "architectures": ["LlamaForCausalLM"]',
        )
    quantisation = config.get("quantization_config")
    if quantisation:
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
        raise UnsupportedCheckpoint(
            f"the weights are quantised ({method or 'unknown method'}), which sllmd does not serve",
            hint="import the bf16 or fp16 version of the model",
        )
    return config, names[0]


def check_tokenizer(names: Iterable[str], where: str) -> None:
    """Raise UnsupportedCheckpoint unless ``names``, the small files at ``where``, have a tokenizer."""
    if TOKENIZER_FILE not in names:
        raise UnsupportedCheckpoint(
            f"{where} has no tokenizer: neither {TOKENIZER_FILE} nor one that it could be made from",
            hint="put the files of the model's tokenizer beside its weights",
        )


def parse_index(text: bytes, file: str) -> dict[str, str]:
    """Tensor name -> file of a sharded checkpoint. Raises MalformedCheckpoint; no file leaves the root."""
    weight_map = parse_json_object(text, file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MalformedCheckpoint(f"{file} has no weight_map")
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise MalformedCheckpoint(f"{file}: the file of tensor {tensor} is not a string")
        check_relative(name, file)
    if len(set(weight_map.values())) > DATA_FILES_MAX:
        raise MalformedCheckpoint(f"{file} names more than {DATA_FILES_MAX} files")
    return cast("dict[str, str]", weight_map)


def check_relative(name: str, named_by: str) -> None:
    """Raise MalformedCheckpoint unless ``name`` is a plain path below the checkpoint's root."""
    parts = name.split("/")
    plain = name.isprintable() and "\\" not in name and not PurePosixPath(name).is_absolute()
    if not plain or any(part in {"", ".", ".."} for part in parts):
        raise MalformedCheckpoint(
            f"{named_by} points outside the checkpoint: {name!r}",
            hint="do not use checkpoints from this source",
        )


def assemble(headers: Iterable[Header], weight_map: Mapping[str, str] | None) -> tuple[SourceTensor, ...]:
    """All tensors of all files, held against the index when there is one. Raises MalformedCheckpoint."""
    tensors: dict[str, SourceTensor] = {}
    for header in headers:
        for found in header.tensors:
            if found.name in tensors:
                raise MalformedCheckpoint(
                    f"tensor {found.name} is in {tensors[found.name].file} and in {header.file}"
                )
            if weight_map is not None and weight_map.get(found.name) != header.file:
                raise MalformedCheckpoint(
                    f"{header.file} holds tensor {found.name}, which the index does not place there"
                )
            tensors[found.name] = SourceTensor(
                found.name, found.dtype, found.shape, header.file, found.offset_bytes, found.size_bytes
            )
    for name, file in (weight_map or {}).items():
        if name not in tensors:
            raise MalformedCheckpoint(f"tensor {name} is missing from {file}, where the index places it")
    if not tensors:
        raise MalformedCheckpoint("the checkpoint holds no tensors")
    return tuple(tensors.values())

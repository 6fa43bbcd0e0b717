"""A checkpoint in a directory of this machine: what is in it, and is it sound.

Symbolic links are followed when they stay inside the directory or lead into the ``blobs`` beside a
Hugging Face cache's ``snapshots``; any other link is refused, since a checkpoint from elsewhere could use
one to have a file of this machine copied or read.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

from sllmd.core.errors import MalformedCheckpoint, UnsupportedCheckpoint
from sllmd.store.header import read_header
from sllmd.store.source import (
    CONFIG_FILE,
    INDEX_FILE,
    LEGACY_TOKENIZER_FILES,
    SINGLE_FILE,
    SMALL_FILE_BYTES_MAX,
    SMALL_FILES,
    TOKENIZER_FILE,
    SourceCheckpoint,
    assemble,
    parse_config,
    parse_index,
)

_TORCH_FILES = ("pytorch_model.bin.index.json", "pytorch_model.bin")
_TORCH_SUFFIXES = frozenset({".bin", ".pt", ".pth"})


@dataclass(frozen=True, slots=True)
class LocalSource:
    """What the user pointed at: the format, its root, and the one weights file if it is one."""

    kind: Literal["safetensors", "torch", "gguf"]
    root: Path
    file: Path | None = None
    named: str | None = None
    """What the user said, where it is no path: a built-in model lies in a directory that goes away."""


def find_local(path: Path) -> LocalSource:
    """Recognise what lies at ``path``. Raises MalformedCheckpoint and UnsupportedCheckpoint."""
    if path.is_dir():
        return _find_in_directory(path)
    if not path.is_file():
        raise MalformedCheckpoint(f"{path} is neither a directory nor a file")
    if path.suffix == ".gguf":
        return LocalSource("gguf", path.parent, path)
    if path.suffix == ".safetensors":
        return LocalSource("safetensors", path.parent, path)
    if path.suffix in _TORCH_SUFFIXES:
        return LocalSource("torch", path.parent, path)
    raise UnsupportedCheckpoint(
        f"{path.name} is no checkpoint that sllmd knows", hint="give a .safetensors, .bin, .pt or .gguf file"
    )


def _find_in_directory(directory: Path) -> LocalSource:
    names = sorted(child.name for child in directory.iterdir())
    if SINGLE_FILE in names or INDEX_FILE in names:
        return LocalSource("safetensors", directory)
    singles = [name for name in names if name.endswith(".safetensors") and not name.startswith("adapter_")]
    if len(singles) == 1:
        return LocalSource("safetensors", directory, directory / singles[0])
    if singles:
        raise MalformedCheckpoint(f"{directory} has {len(singles)} safetensors files and no {INDEX_FILE}")
    if any(name in names for name in _TORCH_FILES):
        return LocalSource("torch", directory)
    ggufs = [name for name in names if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return LocalSource("gguf", directory, directory / ggufs[0])
    if ggufs:
        raise MalformedCheckpoint(f"{directory} has {len(ggufs)} GGUF files", hint="name one of them")
    if "adapter_config.json" in names:
        raise UnsupportedCheckpoint(
            f"{directory} is an adapter, not a model", hint="merge it into its base model"
        )
    raise MalformedCheckpoint(f"{directory} holds no model: no safetensors, torch or GGUF file")


def read_local(root: Path, file: Path | None = None) -> SourceCheckpoint:
    """Read and check all headers of a safetensors checkpoint (only ``file`` when given), no tensors.

    Raises MalformedCheckpoint and UnsupportedCheckpoint, naming the file at fault; OSError.
    """
    config, architecture = parse_config(read_small_file(root, CONFIG_FILE))
    weight_map = None
    if file is not None:
        files = [file.name]
    elif (root / SINGLE_FILE).exists():
        files = [SINGLE_FILE]
    else:
        weight_map = parse_index(read_small_file(root, INDEX_FILE), INDEX_FILE)
        files = list(dict.fromkeys(weight_map.values()))
    headers = [read_header(resolve_inside(root, name, named_by=INDEX_FILE), name) for name in files]
    return SourceCheckpoint(
        config=config,
        architecture=architecture,
        tensors=assemble(headers, weight_map),
        file_bytes={header.file: header.file_bytes for header in headers},
        fingerprint=fingerprint(root, files),
    )


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file of an index on disk, each file known to lie inside the index's directory."""
    weight_map = parse_index(read_small_file(path.parent, path.name), path.name)
    for name in set(weight_map.values()):
        resolve_inside(path.parent, name, named_by=path.name)
    return weight_map


def resolve_inside(root: Path, name: str, *, named_by: str) -> Path:
    """The file ``name`` below ``root``, links followed. Raises MalformedCheckpoint if missing or outside."""
    try:
        real = (root / name).resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MalformedCheckpoint(f"{name} is missing, which {named_by} names") from error
    except (OSError, RuntimeError) as error:
        raise MalformedCheckpoint(f"{name} cannot be followed to a file: {error}") from error
    inside = real.is_relative_to(root.resolve())
    if not inside and not real.is_relative_to(_hub_blobs(root)):
        raise MalformedCheckpoint(
            f"{name} is a link that leaves the checkpoint, to {real}", hint="put the file itself there"
        )
    return real


def _hub_blobs(root: Path) -> Path:
    """Where a snapshot in a Hugging Face cache keeps its bytes: models--o--n/{blobs,snapshots/REV}."""
    real = root.resolve()
    return real.parent.parent / "blobs" if real.parent.name == "snapshots" else real


def small_files(root: Path) -> list[str]:
    """The small files a checkpoint has, in a fixed order."""
    return [name for name in SMALL_FILES if (root / name).exists()]


def needs_tokenizer(root: Path) -> bool:
    """Whether there is a tokenizer that is not yet a ``tokenizer.json``."""
    return not (root / TOKENIZER_FILE).exists() and bool(legacy_tokenizer_files(root))


def legacy_tokenizer_files(root: Path) -> list[str]:
    """The files that a ``tokenizer.json`` could be made from, in a fixed order."""
    return [name for name in LEGACY_TOKENIZER_FILES if (root / name).exists()]


def read_small_file(root: Path, name: str) -> bytes:
    """All of a small file. Raises MalformedCheckpoint when it is missing, empty, outside or too large."""
    if not (root / name).is_symlink() and not (root / name).exists():
        raise MalformedCheckpoint(
            f"{name} is missing in {root}",
            hint="a model's small files lie beside its weights",
        )
    path = resolve_inside(root, name, named_by="a model")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise MalformedCheckpoint(f"{name} is not a regular file")
    if not 0 < status.st_size <= SMALL_FILE_BYTES_MAX:
        raise MalformedCheckpoint(f"{name} has {status.st_size} bytes")
    return path.read_bytes()


def fingerprint(root: Path, files: list[str]) -> str:
    """Changes when a data file does: a hash over names, sizes and times."""
    hasher = xxhash.xxh3_128()
    for name in files:
        status = (root / name).stat()
        hasher.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return hasher.hexdigest()

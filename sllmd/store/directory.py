"""One published checkpoint directory: ``manifest.json``, small files and, when stored, the data files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import xxhash
from pydantic import ValidationError

from sllmd.core.errors import MalformedCheckpoint, UnsupportedCheckpoint
from sllmd.store.consistency import check_manifest
from sllmd.store.durable import sync_directory, write_file
from sllmd.store.manifest import FORMAT_VERSION, Manifest

MANIFEST_FILE = "manifest.json"


def parse_manifest(text: bytes, file: str) -> Manifest:
    """The manifest in ``text``. Raises MalformedCheckpoint and UnsupportedCheckpoint naming ``file``."""
    try:
        raw = json.loads(text)
        version = raw["format_version"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise MalformedCheckpoint(f"{file} is no manifest", hint="import the model again") from error
    if version != FORMAT_VERSION:
        raise UnsupportedCheckpoint(
            f"{file} has format version {version}, this sllmd reads {FORMAT_VERSION}",
            hint="upgrade sllmd, or import the model again",
        )
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise MalformedCheckpoint(
            f"{file}: {where}: {fault['msg']}", hint="import the model again"
        ) from error
    check_manifest(manifest, file)
    return manifest


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a checkpoint directory. Raises as ``parse_manifest``, and FileNotFoundError."""
    path = directory / MANIFEST_FILE
    return parse_manifest(path.read_bytes(), str(path))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest and have the directory on stable storage. Raises OSError."""
    write_file(directory / MANIFEST_FILE, manifest.model_dump_json(indent=1).encode())
    sync_directory(directory)


def copy_small_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy small files that are known to be there, onto stable storage. Raises OSError."""
    for name in names:
        write_file(target / name, (source / name).read_bytes())


def small_digests(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """xxh3-128 of each small file. Raises MalformedCheckpoint when one is missing."""
    try:
        return {name: xxhash.xxh3_128_hexdigest((directory / name).read_bytes()) for name in names}
    except FileNotFoundError as error:
        raise MalformedCheckpoint(f"{error.filename} is missing", hint="import the model again") from error


def tree_bytes(directory: Path) -> int:
    """Bytes of all files below ``directory``."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())

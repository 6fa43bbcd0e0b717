"""Importing: a directory, a file or a URL becomes a model in the catalogue.

Safetensors are copied into the store's own format, or registered where they are (``in_place``). Torch files
and GGUF are first turned into safetensors by a child process. A URL is only registered: its headers and small
files are fetched now, its bytes with the first load. Whatever happens on the way, the store shows the model
as it was before or as it is after.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Literal

from sllmd.core.errors import InvalidRequest, MalformedCheckpoint, PathNotFound, StoreError
from sllmd.core.units import format_bytes
from sllmd.store import builtin
from sllmd.store.catalogue import check_name
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.converting import convert
from sllmd.store.credentials import HUB_PREFIX, NO_USER_HINT, hub_url, names_user, shown_url
from sllmd.store.destination import AS, Destination
from sllmd.store.digest import UNNAMED, with_digest
from sllmd.store.directory import small_digests, write_manifest
from sllmd.store.durable import make_directory, write_file
from sllmd.store.layout import lay_out, lay_out_in_place
from sllmd.store.local import (
    LocalSource,
    find_local,
    fingerprint,
    legacy_tokenizer_files,
    needs_tokenizer,
    read_local,
    read_small_file,
    resolve_inside,
    small_files,
)
from sllmd.store.manifest import FORMAT_VERSION, DataFile, Manifest, Partition, Source
from sllmd.store.progress import OnProgress, StageProgress, at_stage, untold
from sllmd.store.remote import register_remote
from sllmd.store.settings import ImportSettings
from sllmd.store.source import CONFIG_FILE, SourceCheckpoint, check_tokenizer
from sllmd.store.store import Store
from sllmd.store.ties import absent_ties, find_ties
from sllmd.store.verify import hash_chunks
from sllmd.store.writing import write_partitions

_URL = re.compile(r"https?://")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SPARE_BYTES = 64 * 1024 * 1024
"""Must stay free on the store's filesystem, for small files and for everybody else there."""


def import_checkpoint(
    store: Store,
    source: str,
    *,
    name: str | None,
    partitions: int = 1,
    in_place: bool = False,
    replace: bool = False,
    on_progress: OnProgress,
    settings: ImportSettings | None = None,
) -> Checkpoint:
    """Import ``source`` (directory, file, http(s) or hf:// URL, ``builtin:tiny``) as ``name``.

    ``name`` defaults to the source's last part. A model that has the name is returned when it is the same,
    goes with ``replace``, and is a Conflict otherwise. Raises InvalidRequest for the name,
    CheckpointError for the source, LoadError for a remote one, StoreError when the store refuses; then the
    store is as it was.
    """
    settings = settings or ImportSettings()
    model = check_name(name if name is not None else default_name(source))
    if source.startswith(HUB_PREFIX):
        source = hub_url(source)
    is_url = _URL.match(source) is not None
    if names_user(source):
        raise InvalidRequest(
            f"the URL names a user, and may show a password: {shown_url(source)} will do",
            param="source",
            hint=NO_USER_HINT,
        )
    if in_place and partitions != 1:
        raise InvalidRequest("a model served in place has one partition", param="partitions")
    if is_url and (in_place or partitions != 1):
        raise InvalidRequest(
            "a remote model is brought as it is: no partitions, not in place", param="source"
        )
    with store.importing(model) as staging:
        destination = Destination.of(store, model, replace=replace)
        if is_url:
            return register_remote(destination, source, staging, settings, at_stage(on_progress, "fetching"))
        local = _local_source(source, staging)
        if in_place and (local.kind != "safetensors" or source.startswith(builtin.PREFIX)):
            raise InvalidRequest(
                f"only safetensors can be served in place, {source} is not", hint="leave out --in-place"
            )
        if in_place:
            return _register_in_place(destination, local, staging, settings, on_progress)
        return _import_copy(destination, local, staging, partitions, settings, on_progress)


def default_name(source: str) -> str:
    """The name a model gets when the user gives none: the source's last part, made a name."""
    if _URL.match(source):
        source = re.sub(r"[?#].*", "", source)  # a token is nobody's name
    if source.startswith(HUB_PREFIX):
        source = source.partition("@")[0]
    source = re.sub(r"/resolve/[^/]+/?$", "", source)  # a hub's address of one revision
    last = source.removeprefix(builtin.PREFIX).rstrip("/").rsplit("/", 1)[-1]
    last = re.sub(r"\.(safetensors|gguf|bin|pt|pth)$", "", last if last not in {"", ".", ".."} else "")
    if not last:
        last = Path(source).resolve().name
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", last).strip("-._+").lower()[:120]


def _local_source(source: str, staging: Path) -> LocalSource:
    if source.startswith(builtin.PREFIX):
        directory = staging / "builtin"
        builtin.make_builtin(source.removeprefix(builtin.PREFIX), directory)
        return LocalSource("safetensors", directory, named=source)
    path = Path(source).expanduser().absolute()
    if not path.exists():
        raise _not_there(source, path)
    try:
        return find_local(path)
    except PermissionError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error


def _not_there(source: str, path: Path) -> PathNotFound:
    if not _HUB_ID.fullmatch(source):
        return PathNotFound(f"{path} does not exist", hint="give a directory, a file or a URL")
    return PathNotFound(f"{path} does not exist", hint=f"a model on the Hugging Face hub is hf://{source}")


def _import_copy(
    destination: Destination,
    local: LocalSource,
    staging: Path,
    partitions: int,
    settings: ImportSettings,
    on_progress: OnProgress,
) -> Checkpoint:
    if local.kind == "safetensors":
        found, root = _read_source(local.root, local.file), local.root
        origin = _origin(local, list(found.file_bytes), settings)
        if there := destination.there_already(origin, partitions, settings.chunk_bytes):
            return there
        destination.refuse_other_tensors(found)
    else:
        origin = _origin(local, _foreign_files(local), settings)
        if there := destination.there_already(origin, partitions, settings.chunk_bytes):
            return there
        destination.refuse_other_place(origin)
        root = staging / "converted"
        _convert_weights(local, root, settings, on_progress)
        found = _read_source(root, None)
    publishable = staging / "checkpoint"
    make_directory(publishable)
    weights = publishable if destination.held is None else None
    manifest = _copy(found, root, origin, publishable, weights, staging, partitions, settings, on_progress)
    return _publish(destination, manifest, publishable, kind="stored")


def _copy(
    found: SourceCheckpoint,
    root: Path,
    origin: Source,
    publishable: Path,
    weights: Path | None,
    staging: Path,
    partitions: int,
    settings: ImportSettings,
    on_progress: OnProgress,
) -> Manifest:
    """Write ``found``, whose files lie below ``root``, in the store's own format to ``publishable``.

    ``weights`` None: they are only read, as the model that has the name is the same or is another.
    """
    ties = find_ties(found, root)
    stored = [tensor for tensor in found.tensors if tensor.name not in ties]
    layout = lay_out(stored, partitions=partitions)
    if weights is not None:
        _check_space(staging, sum(layout.spans_bytes))
    sources = {name: resolve_inside(root, name, named_by="the index") for name in found.file_bytes}
    counter = StageProgress(
        on_progress, "copying" if weights else "hashing", sum(tensor.size_bytes for tensor in stored)
    )
    written = write_partitions(
        layout, sources, weights, chunk_bytes=settings.chunk_bytes, advance=counter.advance
    )
    if fingerprint(root, list(found.file_bytes)) != found.fingerprint:
        raise MalformedCheckpoint(f"{root} changed while it was imported", hint="import it again")
    names = _small_files(root, publishable, staging, settings)
    return Manifest(
        format_version=FORMAT_VERSION,
        digest=UNNAMED,
        source=origin,
        architecture=found.architecture,
        config=found.config,
        tensors=tuple(placement.tensor for placement in layout.placements),
        ties=ties,
        partitions=written,
        chunk_bytes=settings.chunk_bytes,
        small_files=tuple(names),
    )


def _register_in_place(
    destination: Destination,
    local: LocalSource,
    staging: Path,
    settings: ImportSettings,
    on_progress: OnProgress,
) -> Checkpoint:
    found = _read_source(local.root, local.file)
    tensors, bases, span = lay_out_in_place(found.tensors, found.file_bytes)
    counter = StageProgress(on_progress, "hashing", sum(found.file_bytes.values()))
    files = tuple(
        DataFile(
            path=name,
            base_bytes=bases[name],
            size_bytes=size,
            chunk_digests=hash_chunks(local.root / name, settings.chunk_bytes, counter.advance),
        )
        for name, size in found.file_bytes.items()
    )
    publishable = staging / "checkpoint"
    make_directory(publishable)
    names = _small_files(local.root, publishable, staging, settings)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        digest=UNNAMED,
        source=Source(kind="safetensors", location=str(local.root), fingerprint=found.fingerprint),
        architecture=found.architecture,
        config=found.config,
        tensors=tensors,
        ties=absent_ties(found),
        partitions=(Partition(span_bytes=span, files=files),),
        chunk_bytes=settings.chunk_bytes,
        small_files=tuple(names),
    )
    return _publish(destination, manifest, publishable, kind="in-place", data_directory=local.root)


def _publish(
    destination: Destination,
    manifest: Manifest,
    directory: Path,
    *,
    kind: Literal["stored", "in-place"],
    data_directory: Path | None = None,
) -> Checkpoint:
    manifest = with_digest(manifest, small_digests(directory, manifest.small_files))
    write_manifest(directory, manifest)
    return destination.publish(directory, manifest, kind=kind, data_directory=data_directory)


def _convert_weights(
    local: LocalSource, converted: Path, settings: ImportSettings, on_progress: OnProgress
) -> None:
    source = local.file or local.root
    converting = at_stage(on_progress, "converting")
    converting(0, sum((local.root / name).stat().st_size for name in _foreign_files(local)))
    if local.kind == "torch":
        read_small_file(local.root, CONFIG_FILE)  # before minutes are spent on what cannot be used
    convert(
        "gguf" if local.kind == "gguf" else "torch",
        source,
        converted,
        dtype=settings.gguf_dtype,
        on_progress=converting,
    )
    if local.kind == "torch":
        for name in small_files(local.root):
            write_file(converted / name, read_small_file(local.root, name))
        if needs_tokenizer(local.root):
            convert("tokenizer", local.root, converted, dtype=settings.gguf_dtype, on_progress=untold)


def _small_files(root: Path, target: Path, staging: Path, settings: ImportSettings) -> list[str]:
    """Bring the small files to ``target``, synced; a legacy tokenizer becomes a tokenizer.json."""
    contents: dict[str, Path] = dict.fromkeys(small_files(root), root)
    if needs_tokenizer(root):
        made = staging / "tokenizer"
        convert("tokenizer", root, made, dtype=settings.gguf_dtype, on_progress=untold)
        contents |= dict.fromkeys(small_files(made), made)
    for name, directory in contents.items():
        write_file(target / name, read_small_file(directory, name))
    return list(contents)


def _read_source(root: Path, file: Path | None) -> SourceCheckpoint:
    try:
        found = read_local(root, file)
    except OSError as error:
        raise StoreError(f"cannot read the model: {error.strerror}: {error.filename}") from error
    if not needs_tokenizer(root):
        check_tokenizer(small_files(root), str(root))
    return found


def _foreign_files(local: LocalSource) -> list[str]:
    """The files of a torch or GGUF checkpoint."""
    if local.file:
        return [local.file.name]
    return sorted(path.name for path in local.root.glob("pytorch_model*"))


def _origin(local: LocalSource, data_files: list[str], settings: ImportSettings) -> Source:
    """What the user pointed at, not what is copied in the end; changes when one of its files does, or what is
    made of it."""
    made_to = f"{AS}{settings.gguf_dtype}" if local.kind == "gguf" else ""
    beside = [] if local.kind == "gguf" else [*small_files(local.root), *legacy_tokenizer_files(local.root)]
    return Source(
        kind=local.kind,
        location=local.named or str(local.file or local.root),
        fingerprint=fingerprint(local.root, [*data_files, *beside]) + made_to,
    )


def _check_space(directory: Path, needed_bytes: int) -> None:
    """Refuse early what would fail late. Raises StoreError."""
    free_bytes = shutil.disk_usage(directory).free
    if needed_bytes + SPARE_BYTES > free_bytes:
        raise StoreError(
            f"the model needs {format_bytes(needed_bytes)}, the store has {format_bytes(free_bytes)} free",
            hint="free some space (`sllmd rm MODEL`), or put the store on a larger disk",
        )

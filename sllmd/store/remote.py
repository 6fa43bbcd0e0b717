"""Registering a model that is at a URL: headers and small files are read now, tensors with the first load.

The URL is a directory in Hugging Face's layout (config.json, tokenizer files, model.safetensors or an index
and shards) or a checkpoint directory of another sllmd store, whose manifest is then taken as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sllmd.core.errors import MalformedCheckpoint, SourceUnavailable
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.connections import file_url
from sllmd.store.credentials import shown_url
from sllmd.store.destination import Destination
from sllmd.store.digest import UNNAMED, manifest_digest, with_digest
from sllmd.store.directory import MANIFEST_FILE, parse_manifest, small_digests, write_manifest
from sllmd.store.durable import make_directory, write_file
from sllmd.store.header import PREFIX_BYTES, Header, parse_header, parse_length
from sllmd.store.http import HttpSource
from sllmd.store.layout import absent_heads, lay_out_in_place
from sllmd.store.manifest import FORMAT_VERSION, DataFile, Manifest, Partition, Source
from sllmd.store.settings import ImportSettings
from sllmd.store.source import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    SMALL_FILE_BYTES_MAX,
    SMALL_FILES,
    assemble,
    check_tokenizer,
    parse_config,
    parse_index,
)

CONNECTIONS_MAX = 8
"""Headers of shards that are read at once."""
FIRST_READ_BYTES = 256 * 1024
"""Read of each shard at first: most headers fit, which saves a second round trip."""


def register_remote(
    destination: Destination,
    url: str,
    staging: Path,
    settings: ImportSettings,
    on_progress: Callable[[int, int], None],
) -> Checkpoint:
    """Register the checkpoint at ``url``.

    Raises SourceUnavailable, SourceChanged, MalformedCheckpoint, UnsupportedCheckpoint, Conflict, StoreError.
    """
    source = _find(url, settings.http_timeout_seconds)
    directory = staging / "checkpoint"
    make_directory(directory)
    published = source.read_small(MANIFEST_FILE, SMALL_FILE_BYTES_MAX)
    if published is not None:
        manifest = _take_manifest(source, published, directory)
    else:
        manifest = _read_hub_layout(source, directory, settings, on_progress)
    write_manifest(directory, manifest)
    return destination.publish(directory, manifest, kind="remote", remote_url=source.base_url)


def _find(url: str, timeout_seconds: float) -> HttpSource:
    """Where a model lies: at ``url``, or, when that is its page on a hub, in the main revision.

    Raises SourceUnavailable when neither has what every model has.
    """
    for base_url in (url, file_url(url, "resolve/main")):
        source = HttpSource(base_url, timeout_seconds)
        if any(source.read_small(name, SMALL_FILE_BYTES_MAX) for name in (MANIFEST_FILE, CONFIG_FILE)):
            return source
    raise SourceUnavailable(
        f"{shown_url(file_url(url, CONFIG_FILE))} is not there, nor is a {MANIFEST_FILE}",
        hint="give the URL of a directory with a Hugging Face model's files, or of a model in a sllmd store",
    )


def _take_manifest(source: HttpSource, text: bytes, directory: Path) -> Manifest:
    """Another store's manifest, believed only as far as its own digest goes."""
    manifest = parse_manifest(text, source.shown(MANIFEST_FILE))
    if _fetch_small_files(source, directory, manifest.small_files) != list(manifest.small_files):
        raise SourceUnavailable(f"{shown_url(source.base_url)} lacks small files that its manifest lists")
    if manifest_digest(manifest, small_digests(directory, manifest.small_files)) != manifest.digest:
        raise MalformedCheckpoint(f"{source.shown(MANIFEST_FILE)} does not fit its digest")
    origin = manifest.source.model_copy(update={"location": shown_url(manifest.source.location)})
    return manifest.model_copy(update={"source": origin})


def _read_hub_layout(
    source: HttpSource, directory: Path, settings: ImportSettings, on_progress: Callable[[int, int], None]
) -> Manifest:
    names = _fetch_small_files(source, directory, SMALL_FILES)
    check_tokenizer(names, shown_url(source.base_url))
    config, architecture = parse_config((directory / CONFIG_FILE).read_bytes())
    index = source.read_small(INDEX_FILE, SMALL_FILE_BYTES_MAX)
    weight_map = None if index is None else parse_index(index, INDEX_FILE)
    files = [SINGLE_FILE] if weight_map is None else list(dict.fromkeys(weight_map.values()))
    headers, validators = _read_headers(source, files, on_progress)
    found = assemble(headers, weight_map)
    tensors, bases, span = lay_out_in_place(found, {header.file: header.file_bytes for header in headers})
    data_files = tuple(
        DataFile(path=header.file, base_bytes=bases[header.file], size_bytes=header.file_bytes)
        for header in headers
    )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        digest=UNNAMED,
        source=Source(
            kind="http",
            location=shown_url(source.base_url),
            fingerprint=json.dumps(validators, sort_keys=True),
        ),
        architecture=architecture,
        config=config,
        tensors=tensors,
        ties=absent_heads(found, config),
        partitions=(Partition(span_bytes=span, files=data_files),),
        chunk_bytes=settings.chunk_bytes,
        small_files=tuple(names),
    )
    return with_digest(manifest, small_digests(directory, names))


def _fetch_small_files(source: HttpSource, directory: Path, wanted: tuple[str, ...]) -> list[str]:
    """Fetch those of ``wanted`` that are there; their names in the same order."""
    with ThreadPoolExecutor(CONNECTIONS_MAX) as pool:
        contents = list(pool.map(lambda name: source.read_small(name, SMALL_FILE_BYTES_MAX), wanted))
    fetched = [(name, data) for name, data in zip(wanted, contents, strict=True) if data is not None]
    for name, data in fetched:
        write_file(directory / name, data)
    return [name for name, _ in fetched]


def _read_headers(
    source: HttpSource, files: list[str], on_progress: Callable[[int, int], None]
) -> tuple[list[Header], dict[str, str]]:
    """Each file's header and what identifies its version."""
    headers: list[Header] = []
    validators: dict[str, str] = {}
    with ThreadPoolExecutor(CONNECTIONS_MAX) as pool:
        for header, validator in pool.map(lambda file: _read_remote_header(source, file), files):
            headers.append(header)
            validators[header.file] = validator
            on_progress(len(headers), len(files))
    return headers, validators


def _read_remote_header(source: HttpSource, file: str) -> tuple[Header, str]:
    first = source.read_piece(file, 0, FIRST_READ_BYTES)
    length = parse_length(first.data[:PREFIX_BYTES], file=file, file_bytes=first.file_bytes)
    text = first.data[PREFIX_BYTES : PREFIX_BYTES + length]
    if len(text) < length:
        text += source.read_all_of(file, PREFIX_BYTES + len(text), PREFIX_BYTES + length, first)
    return parse_header(text, file=file, file_bytes=first.file_bytes), first.validator

"""Commands on the store of this machine, with or without a daemon beside them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from sllmd.cli.client import DaemonUnreachable
from sllmd.cli.progress import byte_bar
from sllmd.cli.session import ModelArgument, Session, command
from sllmd.cli.tables import Column, fields
from sllmd.core.errors import SllmdError, StoreError
from sllmd.core.units import format_bytes, format_seconds
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.store import Store, StoredModel

app = typer.Typer()

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", help="The store's directory. [default: the configured, or the daemon's]"),
]


_COLUMNS = (
    Column("MODEL", lambda row: row["name"]),
    Column("SIZE", lambda row: format_bytes(row["size_bytes"]), right=True),
    Column("KIND", lambda row: row["kind"]),
    Column("ARCHITECTURE", lambda row: row["architecture"]),
    Column("IMPORTED", lambda row: f"{format_seconds(max(0.0, time.time() - row['imported_at']))} ago"),
    Column("ALIASES", lambda row: ", ".join(row["aliases"]) or "-"),
    Column("DIGEST", lambda row: row["digest"], wide=True),
    Column("PROBLEM", lambda row: row["problem"] or "-", wide=True),
)


@command(app, "list")
def list_(session: Session, store: StoreOption = None) -> None:
    """List the models in the store."""
    models = store_of(session, store).models()
    session.show_rows(
        [_model_json(model) for model in models], _COLUMNS, empty="no models yet: sllmd import DIR|FILE|URL"
    )
    for model in models:
        if model.problem:
            session.note(f"{model.name}: {model.problem}")


@command(app, "show")
def show(session: Session, model: ModelArgument, store: StoreOption = None) -> None:
    """Show everything about one model."""
    checkpoint = store_of(session, store).resolve(model)
    facts = checkpoint_json(checkpoint)
    session.show_object(facts, _facts_text(facts))


@command(app, "rm")
def rm(session: Session, model: ModelArgument, store: StoreOption = None) -> None:
    """Remove a model from the store, or an alias; a model served in place keeps its own files."""
    freed_bytes = store_of(session, store).remove(model)
    session.show_object(
        {"model": model, "freed_bytes": freed_bytes}, f"{model} removed, {format_bytes(freed_bytes)} freed"
    )


@command(app, "verify")
def verify(session: Session, model: ModelArgument, store: StoreOption = None) -> None:
    """Check a model's bytes against its checksums; a bad copy is taken out of service."""
    verified_bytes = 0
    with byte_bar(model, shown=session.shows_progress) as update:

        def on_progress(done: int, total: int) -> None:
            nonlocal verified_bytes
            verified_bytes = done
            update("verifying", done, total)

        store_of(session, store).verify(model, on_progress)
    session.show_object(
        {"model": model, "verified_bytes": verified_bytes, "ok": True},
        f"{model}: {format_bytes(verified_bytes)} are what was imported",
    )


@command(app, "alias")
def alias(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="The other name.")],
    model: ModelArgument,
    store: StoreOption = None,
) -> None:
    """Give a model another name; `sllmd rm ALIAS` takes it away."""
    store_of(session, store).alias(name, model)
    session.show_object({"alias": name, "model": model}, f"{name} -> {model}")


def store_of(session: Session, directory: Path | None) -> Store:
    """The store that a command is about.

    1. The one named by ``--store``.
    2. That of the daemon named by ``--addr``, which must answer.
    3. The configured one.
    4. Where nobody configured one: that of the daemon that answers, else the default.

    A person is told when it is not what the configuration alone, or the daemon alone, would say.
    """
    if directory is not None:
        return Store(directory)
    if session.options.addr:
        return Store(_named_daemon_store(session))
    configured = session.loaded.config.node.store_directory
    address = session.client.address
    try:
        of_daemon = _daemon_store(session)
    except DaemonUnreachable:
        return Store(configured)
    except SllmdError as error:
        session.note(f"store: {configured} (the daemon at {address} does not tell its own: {error.message})")
        return Store(configured)
    if of_daemon == configured:
        return Store(configured)
    if session.loaded.is_set(("node", "data_dir")):
        session.note(f"store: {configured} (configured; the daemon at {address} has {of_daemon})")
        return Store(configured)
    session.note(f"store: {of_daemon} (of the daemon at {address})")
    return Store(_here(of_daemon, session))


def _named_daemon_store(session: Session) -> Path:
    try:
        return _here(_daemon_store(session), session)
    except DaemonUnreachable as error:
        raise DaemonUnreachable(error.message, hint="start it, or name a store with --store") from None


def _daemon_store(session: Session) -> Path:
    return Path(session.client.get("/sllmd/v1/status")["store_directory"])


def _here(directory: Path, session: Session) -> Path:
    if not directory.is_dir():
        raise StoreError(
            f"the daemon at {session.client.address} keeps its store in {directory}, which is not here",
            hint="run this on its machine, or name a store with --store",
        )
    return directory


def _model_json(model: StoredModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "aliases": list(model.aliases),
        "digest": model.digest,
        "size_bytes": model.size_bytes,
        "kind": model.kind,
        "architecture": model.architecture,
        "imported_at": model.imported_at,
        "problem": model.problem,
    }


def checkpoint_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """What programs are told of a checkpoint."""
    manifest = checkpoint.manifest
    dtypes = Counter[str]()
    for tensor in manifest.tensors:
        dtypes[tensor.dtype] += tensor.size_bytes
    return {
        "name": checkpoint.name,
        "digest": manifest.digest,
        "architecture": manifest.architecture,
        "context_tokens": manifest.config.get("max_position_embeddings"),
        "size_bytes": manifest.size_bytes,
        "tensors": len(manifest.tensors),
        "tied_tensors": len(manifest.ties),
        "bytes_per_dtype": dict(dtypes),
        "partitions": [partition.span_bytes for partition in manifest.partitions],
        "source": manifest.source.model_dump(),
        "directory": str(checkpoint.directory),
        "data_directory": str(checkpoint.data_directory),
        "remote_url": checkpoint.remote_url,
        "small_files": list(manifest.small_files),
    }


def _facts_text(facts: Mapping[str, Any]) -> str:
    dtypes = ", ".join(f"{format_bytes(count)} {dtype}" for dtype, count in facts["bytes_per_dtype"].items())
    partitions = ", ".join(format_bytes(count) for count in facts["partitions"])
    pairs = [
        ("model", str(facts["name"])),
        ("architecture", str(facts["architecture"])),
        ("context", f"{facts['context_tokens'] or 'unknown'} tokens"),
        ("size", f"{format_bytes(facts['size_bytes'])}: {dtypes}"),
        ("tensors", f"{facts['tensors']}, and {facts['tied_tensors']} tied ones"),
        ("partitions", f"{len(facts['partitions'])}: {partitions}"),
        ("source", f"{facts['source']['kind']}, {facts['source']['location']}"),
        ("bytes at", str(facts["remote_url"] or facts["data_directory"])),
        ("digest", str(facts["digest"])),
        ("beside it", ", ".join(facts["small_files"])),
    ]
    return fields(pairs)

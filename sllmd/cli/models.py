"""Commands on models: what a daemon serves, its cluster's models included, or what lies in a store.

``list`` and ``show`` ask the daemon, if there is one and no store is named; the others change or read the
store's own bytes, with or without a daemon beside them.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from sllmd.cli.client import DaemonUnreachable, segment
from sllmd.cli.progress import ByteProgress, byte_bar
from sllmd.cli.session import ModelArgument, Session, command
from sllmd.cli.tables import Column, printable
from sllmd.core.errors import InvalidRequest, MalformedCheckpoint, ModelNotFound, SllmdError, StoreError
from sllmd.core.units import format_age, format_bytes, format_seconds
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.credentials import shown_url
from sllmd.store.store import Store, StoredModel

app = typer.Typer()

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", help="The store's directory. (default: the configured, or the daemon's)"),
]


FORGET_SECONDS = 5.0
"""A daemon looks at its store once a second, and the cluster agrees in less."""
_ASK_SECONDS = 0.1

_COLUMNS = (
    Column("MODEL", lambda row: row["name"]),
    Column("SIZE", lambda row: format_bytes(row["size_bytes"]), right=True),
    Column("KIND", lambda row: row["kind"]),
    Column("ARCHITECTURE", lambda row: row["architecture"] or "-"),
    Column("IMPORTED", lambda row: _age(row["imported_at"])),
    Column("ALIASES", lambda row: ", ".join(row["aliases"]) or "-"),
    Column("DIGEST", lambda row: row["digest"], wide=True),
    Column("PROBLEM", lambda row: row["problem"] or "-", wide=True),
)


_TIERS = {"peer": "on other nodes", "nowhere": "-"}
_OWN_SOURCES = frozenset({"ssd", "dram"})
"""Of a plan's ways: the node has the bytes itself."""
_SERVED_COLUMNS = (
    *_COLUMNS[:2],
    Column("STATE", lambda row: row["state"]),
    Column("TIER", lambda row: _TIERS.get(row["tier"], row["tier"])),
    *_COLUMNS[2:],
)


@command(app, "list")
def list_(session: Session, store: StoreOption = None) -> None:
    """List the models that the daemon serves; without a daemon, or with --store, those in the store."""
    columns: Sequence[Column] = _COLUMNS
    if _asks_daemon(session, store):
        columns = _SERVED_COLUMNS
        rows = [_served_json(card) for card in session.client.get("/sllmd/v1/models")["models"]]
    else:
        rows = [_model_json(model) for model in store_of(session, store).models()]
    session.show_rows(rows, columns, empty="no models yet: sllmd import DIR|FILE|URL")
    for row in rows:
        if row["problem"]:
            session.note(f"{row['name']}: {row['problem']}")


@command(app, "show")
def show(session: Session, model: ModelArgument, store: StoreOption = None) -> None:
    """Show everything about one model, as `list` finds it."""
    if not _asks_daemon(session, store):
        facts = checkpoint_json(store_of(session, store).resolve(model))
        session.show_object(facts, session.fields(_facts_pairs(facts)))
        return
    served = _served_json(session.client.get(f"/sllmd/v1/models/{segment(model)}"))
    local = _facts_beside(_daemon_store(session), served)
    pairs = _facts_pairs(local) if local else _served_pairs(served)
    pairs.append(("state", f"{served['state']}, {_TIERS.get(served['tier'], served['tier'])}"))
    keep_alive_seconds = served["keep_alive_seconds"]
    if keep_alive_seconds is not None:
        stays = "for ever" if keep_alive_seconds < 0 else format_seconds(keep_alive_seconds)
        pairs.append(("keep-alive", stays))
    session.show_object(served | (local or {}), session.fields(pairs))


@command(app, "rm")
def rm(
    session: Session,
    model: ModelArgument,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Take it from the cluster, whoever imported it; files stay.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Remove a model and its aliases from the store, or only an alias.

    A model that is served in place keeps its own files. What runs of it is finished, then its memory is free.
    """
    if cluster:
        _withdraw(session, model, store)
        return
    card = _card(session, model) if store is None else None
    if card is not None and (card["name"], card["state"]) == (model, "missing"):
        _take_from_cluster(session, card)
        return
    with _told_of_cluster(session, store, model):
        directory = store_of(session, store)
        found = _found(directory, model)
        freed_bytes = directory.remove(model)
    alias_of = found.name if found is not None and found.name != model else None
    aliases = list(found.aliases) if found is not None and alias_of is None else []
    also = f" and its other {'names' if len(aliases) > 1 else 'name'} {', '.join(aliases)}" if aliases else ""
    text = f"{model}{also} removed, {format_bytes(freed_bytes)} freed"
    if alias_of is not None:
        text = f"{model} removed, which was another name of {alias_of}; {alias_of} stays"
    facts = {"model": model, "freed_bytes": freed_bytes, "aliases": aliases, "alias_of": alias_of}
    session.show_object(facts, text)
    sys.stdout.flush()
    _wait_until_forgotten(session, directory, model)


def _take_from_cluster(session: Session, card: Mapping[str, Any]) -> None:
    """A model whose bytes left with their node: only its name is left to remove."""
    name = card["name"]
    session.client.delete(f"/sllmd/v1/deployments/{segment(name)}")
    facts = {"model": name, "freed_bytes": 0, "aliases": list(card["aliases"]), "alias_of": None}
    session.show_object(facts, f"{name} is no model of the cluster any more; no node that is here had it")


def _withdraw(session: Session, model: str, store: Path | None) -> None:
    """Take a model from the cluster. Raises Conflict while replicas of it work."""
    if store is not None:
        raise InvalidRequest("--cluster and --store do not go together: a store is of one node")
    name = session.client.get(f"/sllmd/v1/models/{segment(model)}")["name"]
    if name != model:
        raise InvalidRequest(f"`{model}` is another name of `{name}`", hint=f"sllmd rm --cluster {name}")
    session.client.delete(f"/sllmd/v1/deployments/{segment(name)}")
    session.show_object(
        {"model": name, "cluster": True},
        f"{name} taken from the cluster; whoever imported it keeps its files until `sllmd rm {name}` there",
    )


def _found(store: Store, name: str) -> StoredModel | None:
    """None: its entry cannot be read, and can be removed all the same. Raises ModelNotFound."""
    try:
        return store.model(name)
    except MalformedCheckpoint:
        return None


def _wait_until_forgotten(session: Session, store: Store, name: str) -> None:
    """Return when the daemon that serves this store knows the name no more, or tell why it still does."""
    deadline_seconds = time.monotonic() + FORGET_SECONDS
    try:
        if _daemon_store(session) != store.root:
            return
        while time.monotonic() < deadline_seconds:
            session.client.get(f"/sllmd/v1/models/{segment(name)}")
            time.sleep(_ASK_SECONDS)
    except SllmdError:  # it knows it no more; or there is no daemon, or none that would tell us
        return
    session.note(
        f"the cluster still has {name}: what runs of it is finished first, or others imported it, too"
    )


@command(app, "verify")
def verify(session: Session, model: ModelArgument, store: StoreOption = None) -> None:
    """Check a model's bytes against its checksums; a bad copy is taken out of service."""
    verified_bytes = 0
    with bytes_told(session, model) as update:

        def on_progress(done: int, total: int) -> None:
            nonlocal verified_bytes
            verified_bytes = done
            update("verifying", done, total)

        with _told_of_cluster(session, store, model):
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
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the name from the model that has it as an alias.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Give a model another name; `sllmd rm ALIAS` takes it away."""
    with _told_of_cluster(session, store, model):
        store_of(session, store).alias(name, model, replace=replace)
    session.show_object({"alias": name, "model": model}, f"{name} -> {model}")


def bytes_told(session: Session, label: str) -> AbstractContextManager[ByteProgress]:
    """Progress as a bar; for a person without a terminal in lines."""
    lines = session.for_people and not session.options.quiet
    return byte_bar(label, shown=session.shows_progress, color=session.color, lines=lines)


def _age(imported_at: float) -> str:
    """Nothing tells when a model was imported whose nodes are away, or whose entry cannot be read."""
    return f"{format_age(max(0.0, time.time() - imported_at))} ago" if imported_at else "-"


def _asks_daemon(session: Session, directory: Path | None) -> bool:
    """Whether ``list`` and ``show`` are about what a daemon serves: where ``store_of`` says its store."""
    if directory is not None:
        return False
    if session.options.addr:
        with _hint_at_store():
            _daemon_store(session)
        return True
    try:
        of_daemon = _daemon_store(session)
    except SllmdError:  # store_of tells of what is more than an absent daemon
        return False
    configured = session.loaded.config.node.store_directory
    return of_daemon == configured or not session.loaded.is_set(("node", "data_dir"))


@contextmanager
def _told_of_cluster(session: Session, directory: Path | None, name: str) -> Iterator[None]:
    """A model that is not in the store may be one of the cluster's, imported on another node: say so."""
    try:
        yield
    except ModelNotFound:
        card = None if directory is not None else _card(session, name)
        if card is None:
            raise
        holders = ", ".join(_holders(session, card["name"])) or "other nodes"
        raise ModelNotFound(
            f"`{name}` is not in the store of this node; its cluster has it on {holders}",
            hint="run this on a node that imported it; `sllmd rm --cluster "
            f"{card['name']}` takes it from the cluster",
        ) from None


def _holders(session: Session, name: str) -> list[str]:
    """Names of the nodes that have the model's bytes, as a plan for its next load tells, if there is one."""
    try:
        found = session.client.get(f"/sllmd/v1/models/{segment(name)}/plan")
    except SllmdError:
        return []
    with_bytes = [way["node"] for way in found["plan"]["ways"] if way["source"] in _OWN_SOURCES]
    return sorted({printable(found["names"].get(node, node)) for node in with_bytes})


def _card(session: Session, name: str) -> Mapping[str, Any] | None:
    """What the daemon serves under ``name``; None: nothing, or there is no daemon."""
    try:
        card: Mapping[str, Any] = session.client.get(f"/sllmd/v1/models/{segment(name)}")
    except SllmdError:
        return None
    return card


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
    with _hint_at_store():
        return _here(_daemon_store(session), session)


@contextmanager
def _hint_at_store() -> Iterator[None]:
    try:
        yield
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


def _served_json(card: Mapping[str, Any]) -> dict[str, Any]:
    """A daemon's card of a model, with the time of import named as for a store's models."""
    row = dict(card)
    row["imported_at"] = row.pop("created")
    return row


def _facts_beside(directory: Path, served: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the daemon's store tells of the model that it serves; None: it is elsewhere."""
    if not directory.is_dir():
        return None
    try:
        facts = checkpoint_json(Store(directory).resolve(served["name"]))
    except ModelNotFound:
        return None
    return facts if facts["digest"] == served["digest"] else None


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
        "source": manifest.source.model_dump() | {"location": shown_url(manifest.source.location)},
        "directory": str(checkpoint.directory),
        "data_directory": str(checkpoint.data_directory),
        "remote_url": shown_url(checkpoint.remote_url) if checkpoint.remote_url else None,
        "small_files": list(manifest.small_files),
    }


def _served_pairs(served: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("model", str(served["name"])),
        ("aliases", ", ".join(served["aliases"]) or "-"),
        ("architecture", str(served["architecture"])),
        ("context", f"{served['context_tokens'] or 'unknown'} tokens"),
        ("size", format_bytes(served["size_bytes"])),
        ("partitions", str(served["partitions"] or "unknown")),
        ("digest", str(served["digest"])),
    ]


def _facts_pairs(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    dtypes = ", ".join(f"{format_bytes(count)} {dtype}" for dtype, count in facts["bytes_per_dtype"].items())
    partitions = ", ".join(format_bytes(count) for count in facts["partitions"])
    return [
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

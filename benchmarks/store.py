"""The bench's own node directory and store, apart from any that the user has."""

from __future__ import annotations

from pathlib import Path

from benchmarks.environments import cache_directory, log
from benchmarks.models import model_directory
from sllmd.core.errors import ModelNotFound
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.importing import import_checkpoint
from sllmd.store.store import Store


def node_directory() -> Path:
    """``data_dir`` of the daemons under test."""
    return cache_directory() / "node"


def bench_store() -> Store:
    """The store of those daemons."""
    return Store(node_directory() / "store")


def imported(name: str) -> Checkpoint:
    """A test model in sllmd's own format, imported when it is not there."""
    store = bench_store()
    try:
        return store.resolve(name)
    except ModelNotFound:
        log(f"importing {name}")
        return import_checkpoint(store, str(model_directory(name)), name=name, on_progress=lambda _: None)

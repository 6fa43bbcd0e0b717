"""The bench's own store, apart from any that the user has."""

from __future__ import annotations

from pathlib import Path

from benchmarks.environments import cache_directory, log
from benchmarks.models import model_directory
from sllmd.core.errors import ModelNotFound
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.importing import import_checkpoint
from sllmd.store.store import Store


def bench_store_directory() -> Path:
    """What all daemons under test have as their ``store``."""
    return cache_directory() / "node" / "store"


def bench_store() -> Store:
    """The store of those daemons."""
    return Store(bench_store_directory())


def imported(name: str) -> Checkpoint:
    """A test model in sllmd's own format, imported when it is not there."""
    store = bench_store()
    try:
        return store.resolve(name)
    except ModelNotFound:
        log(f"importing {name}")
        return import_checkpoint(store, str(model_directory(name)), name=name, on_progress=lambda _: None)

"""Daemons for other people's clients and tools, one of each for all of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import FAKE, LiveDaemon, live_daemon, put_model

NAMES_OF_OPENAI = ("gpt-3.5-turbo-instruct", "gpt-6-astra", "model")
"""Models that OpenAI's own tests ask for."""
LETTERS = {"token_ids": [64, 64 + 26]}
ACTING = {
    "letters": LETTERS,
    "steady": LETTERS | {"token_seconds": 0.05},
    "slow": LETTERS | {"token_seconds": 1.0},
    "endless": LETTERS | {"token_seconds": 3600.0},
    "breaks": LETTERS | {"fail_at_token": 3},
    "unbuildable": {"build_error": "the weights make no sense"},
}


@pytest.fixture(scope="package")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    """The real engine, with the built-in model under all names that judges use."""
    aliases = ", ".join(f'"{name}"' for name in NAMES_OF_OPENAI)
    config = f'[models.tiny]\nsource = "builtin:tiny"\naliases = [{aliases}]\nkeep_alive = -1\n'
    with live_daemon(tmp_path_factory.mktemp("real"), config=config) as daemon:
        yield daemon


@pytest.fixture(scope="package")
def acting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    """Workers that behave as told: the models of ACTING."""
    directory = tmp_path_factory.mktemp("acting")
    for name, behaviour in ACTING.items():
        put_model(directory, name, behaviour)
    with live_daemon(directory, FAKE) as daemon:
        yield daemon


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[LiveDaemon]:
    """One row and no queue: while ``steady`` answers somebody, everybody else gets 503."""
    put_model(tmp_path, "steady", ACTING["steady"])
    with live_daemon(tmp_path, FAKE | {"serving.queue_max_per_model": 0, "engine.batch_max": 1}) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def downloads() -> Path:
    """What judges download, kept between runs, outside of the tree."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "sllmd-tests"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def run(*command: str | Path, seconds: float = 110, **options: object) -> str:
    """What a program printed; it must end well."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
        check=False,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout

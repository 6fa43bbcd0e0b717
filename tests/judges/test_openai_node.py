"""OpenAI's package for Node, at the version that ``node/package-lock.json`` pins."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.judges.conftest import run
from tests.live import LiveDaemon, missing, program
from tests.waiting import until

SOURCES = Path(__file__).parent / "node"


@pytest.fixture(scope="session")
def node_directory(downloads: Path) -> Path:
    """The package, installed outside of the tree."""
    node = program("npm")
    directory = downloads / "openai-node"
    directory.mkdir(exist_ok=True)
    lock = (SOURCES / "package-lock.json").read_bytes()
    installed = directory / "installed-lock.json"
    if not (installed.exists() and installed.read_bytes() == lock):
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCES / name, directory)
        command = [node, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=directory, capture_output=True, check=False)
        if done.returncode != 0:
            missing(f"the openai package cannot be installed: {done.stderr.decode()[-300:]}")
        installed.write_bytes(lock)
    shutil.copy(SOURCES / "judge.mjs", directory)
    return directory


@pytest.fixture
def told(real: LiveDaemon, acting: LiveDaemon, busy: LiveDaemon, node_directory: Path) -> dict[str, Any]:
    """What the script saw."""
    urls = [f"{daemon.url}/v1" for daemon in (real, acting, busy)]
    return json.loads(run(program("node"), "judge.mjs", *urls, cwd=node_directory))


@pytest.mark.slow
def test_everything_a_node_program_does(told: dict[str, Any], acting: LiveDaemon, busy: LiveDaemon) -> None:
    assert told["models"] == ["tiny"]
    assert told["chat"] == {"same": True, "usage": 24}
    assert told["helper"] == "length"
    assert told["raw"]["tokens"] == 3
    assert told["raw"]["requestId"] == "mine-1"
    assert "prefill;dur=" in told["raw"]["timing"]
    until(lambda: not acting.status()["requests_running"], "leaving its loop frees the row")
    assert told["busy"]["refused"][:3] == ["InternalServerError", 503, "queue_full"]
    assert told["busy"]["served"] == 1
    assert "sllmd_requests_rejected_total" in busy.ask("/metrics").raw.decode()
    failures = {name: failure[:3] for name, failure in told["failures"].items()}
    assert failures == {
        "unknownModel": ["NotFoundError", 404, "model_not_found"],
        "tooLong": ["BadRequestError", 400, "context_length_exceeded"],
        "unbuildable": ["InternalServerError", 503, "model_load_failed"],
        "breaks": ["APIError", None, "worker_lost"],
    }
    assert "told to fail at token 3" in told["failures"]["breaks"][3]
    assert "the weights make no sense" in told["failures"]["unbuildable"][3]

"""The tests of OpenAI's own Python SDK, from its source distribution.

Left out: what OpenAI keeps on its servers (stored completions, deleting models), and ``all_params``, whose
made-up values a real server must refuse.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.judges.conftest import run
from tests.live import LiveDaemon, missing

FILES = ("test_completions.py", "test_models.py", "chat/test_completions.py")
LEFT_OUT = "all_params or delete or update or (chat and (list or retrieve))"
TESTS_MIN = 90
"""Fewer means that the distribution looks different and hardly anything was tested."""


@pytest.fixture(scope="session")
def sdk_directory(downloads: Path) -> Path:
    """The unpacked source distribution of the ``openai`` that is installed, which constraints.txt pins."""
    name = f"openai-{version('openai')}"
    archive = downloads / f"{name}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "openai"]
        command += ["-d", str(downloads), name.replace("-", "==")]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode != 0:
            missing(f"{name} cannot be downloaded: {done.stderr.decode()[-300:]}")
    if not (downloads / name).exists():
        with tarfile.open(archive) as packed:
            packed.extractall(downloads, filter="data")
    return downloads / name


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_openais_own_tests_pass(real: LiveDaemon, sdk_directory: Path, prefix: str) -> None:
    """Its tests add no ``/v1`` to the address that they are given, as the mock they are made for has none."""
    output = run(
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-W", "ignore", "-q"),
        *("-k", f"not ({LEFT_OUT})"),
        *(f"tests/api_resources/{name}" for name in FILES),
        cwd=sdk_directory,
        env={**os.environ, "TEST_API_BASE_URL": real.url + prefix, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    passed = re.search(r"(\d+) passed", output)
    assert passed is not None
    assert int(passed[1]) >= TESTS_MIN, output[-2000:]

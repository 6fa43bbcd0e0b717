"""The tests of OpenAI's own Python SDK, from its source distribution, against a live daemon.

Left out: what OpenAI keeps on its servers (stored completions, deleting models), and ``all_params``, whose
made-up values a real server must refuse.
"""

import asyncio
import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

FILES = ("test_completions.py", "test_models.py", "chat/test_completions.py")
LEFT_OUT = "all_params or delete or update or (chat and (list or retrieve))"
TESTS_MIN = 40
"""Fewer means that the distribution looks different and nothing was tested."""


@pytest.fixture(scope="session")
def sdk_directory(request) -> Path:
    """The unpacked source distribution of the ``openai`` that is installed, kept between runs."""
    name = f"openai-{version('openai')}"
    directory = Path(request.config.cache.mkdir("openai-sdist")) if request.config.cache else None
    if directory is None:
        pytest.skip("no cache directory to keep the distribution in")
    archive = directory / f"{name}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "openai"]
        done = subprocess.run(
            [*command, "-d", str(directory), name.replace("-", "==")], capture_output=True, check=False
        )
        if done.returncode != 0:
            reason = f"{name} cannot be downloaded: {done.stderr.decode()[-300:]}"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    if not (directory / name).exists():
        with tarfile.open(archive) as packed:
            packed.extractall(directory, filter="data")
    return directory / name


@pytest.mark.slow
async def test_openais_own_tests_pass(live, sdk_directory):
    paths = [f"tests/api_resources/{name}" for name in FILES]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-W", "ignore"),
        *("-k", f"not ({LEFT_OUT})", *paths),
        cwd=sdk_directory,
        env={**os.environ, "TEST_API_BASE_URL": f"{live.url}/v1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    raw, _ = await process.communicate()
    output = raw.decode()
    assert process.returncode == 0, output[-6000:]
    passed = int(output.split(" passed")[0].rsplit(" ", 1)[-1])
    assert passed >= TESTS_MIN, output[-2000:]

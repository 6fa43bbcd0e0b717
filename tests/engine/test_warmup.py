"""What the zygote does before it forks."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, torch
torch.set_num_threads(1)
from sllmd.engine import warmup
before = os.listdir("/proc/self/task")
warmup.warm_up()
assert os.listdir("/proc/self/task") == before, "a thread was started: it must not be forked"
assert "transformers.models.qwen3.modeling_qwen3" in sys.modules
assert torch.get_num_threads() == 1
"""


@pytest.mark.slow
def test_warming_up_starts_no_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr

import os
import shutil
import subprocess

import pytest

from sllmd.telemetry.metrics import Metrics


def test_every_name_is_ours_and_in_base_units():
    metrics = Metrics()
    names = {family.name for family in metrics.registry.collect()}
    assert "sllmd_requests" in names
    assert all(name.startswith(("sllmd_", "process_")) for name in names)
    assert not any(name.endswith(("_ms", "_mb", "_percent")) for name in names)


def test_two_nodes_in_one_process_do_not_share_counts():
    one, other = Metrics(), Metrics()
    one.prompt_tokens_total.labels("tiny").inc(3)
    assert one.registry.get_sample_value("sllmd_prompt_tokens_total", {"model": "tiny"}) == 3
    assert other.registry.get_sample_value("sllmd_prompt_tokens_total", {"model": "tiny"}) is None


def test_promtool_finds_nothing_to_complain_about():
    promtool = shutil.which("promtool")
    if promtool is None:
        if os.environ.get("CI") == "true":
            pytest.fail("promtool is not installed")
        pytest.skip("promtool is not installed")
    metrics = Metrics()
    metrics.requests_total.labels("tiny", "/v1/completions", "200").inc()
    metrics.time_to_first_token_seconds.labels("tiny", "1").observe(0.2)
    metrics.tier_used_bytes.labels("dram").set(5)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=metrics.exposition(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""

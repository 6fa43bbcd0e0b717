"""Prometheus's own linter on the metrics of a daemon that served, refused and failed."""

from __future__ import annotations

import subprocess

import pytest

from tests.live import LiveDaemon, program


@pytest.mark.slow
def test_metrics_after_real_traffic(real: LiveDaemon, acting: LiveDaemon) -> None:
    promtool = program("promtool")
    for daemon, model in ((real, "tiny"), (acting, "letters")):
        assert daemon.complete(model, max_tokens=3, n=2).status == 200
        with daemon.streaming(model, max_tokens=3) as stream:
            assert list(stream)
        assert daemon.complete(model, max_tokens=-1).status == 400
        assert daemon.complete("nope").status == 404
        assert daemon.ask(f"/sllmd/v1/models/{model}/unload", {}).status == 200
        assert daemon.complete(model, max_tokens=1).status == 200
    assert acting.complete("unbuildable").status == 503
    for daemon in (real, acting):
        text = daemon.ask("/metrics").raw
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")
        assert b'sllmd_cold_starts_total{from_tier="ssd"' in text

"""Figures and plots of runs."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET

import pytest

from sllmd.simulator.plots import svg
from sllmd.simulator.results import Result, interval, summarise


def result(*startups: float, **more) -> Result:
    return Result("startup", 0, startup_seconds=list(startups), devices=2, seconds=20.0, **more)


def test_an_interval_is_student_s() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.half_width == pytest.approx(4.30 * 1 / math.sqrt(3), rel=0.01)
    assert interval([5.0]).half_width == math.inf
    assert interval([2.0] * 10).text() == "2.00 ± 0.00"


def test_a_summary_counts_over_runs_and_is_json() -> None:
    runs = [
        result(0.0, 1.0, cold=1, loads={"ssd": 1}, busy_device_seconds=[10.0, 10.0]),
        result(2.0, 3.0, loads={"ssd": 2, "dram": 1}, failed=1),
    ]
    summary = summarise(runs)
    assert (summary.requests, summary.failed, summary.loads) == (4, 1, {"dram": 1, "ssd": 3})
    assert summary.mean.mean == pytest.approx(1.5)
    assert summary.p50 == pytest.approx(1.5)
    assert summary.cold_share == 0.25
    assert summary.utilisation == pytest.approx(0.25)
    assert json.loads(json.dumps(summary.as_json()))["startup_p99_seconds"] > 0


def test_a_run_without_requests_is_no_error() -> None:
    summary = summarise([result()])
    assert summary.requests == 0
    assert math.isnan(summary.p50)


def test_the_plot_is_svg_with_a_line_for_every_policy_and_escapes_names() -> None:
    text = svg({"a<b": [result(1.0, 2.0, busy_device_seconds=[5.0])], "other": [result()]})
    root = ET.fromstring(text)
    lines = root.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 4
    assert any((each.text or "") == "a<b" for each in root.iter("{http://www.w3.org/2000/svg}text"))

"""Progress in lines: one when a stage begins, then one every few seconds."""

from __future__ import annotations

import pytest

from sllmd.cli import progress
from sllmd.cli.progress import byte_bar


def test_a_line_for_each_stage_and_for_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_seconds = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now_seconds)
    with byte_bar("m", shown=False, lines=True) as update:
        update("converting", 0, 0)
        for done in range(0, 1000, 100):
            update("copying", done * 10**6, 10**9)
            now_seconds += 2
    assert capsys.readouterr().err.splitlines() == [
        "m: converting",
        "m: copying 1.00 GB",
        "m: copying, 300.0 MB of 1.00 GB, 50.0 MB/s, 14.00 s left",
        "m: copying, 600.0 MB of 1.00 GB, 50.0 MB/s, 8.00 s left",
        "m: copying, 900.0 MB of 1.00 GB, 50.0 MB/s, 2.00 s left",
    ]


def test_nothing_where_nothing_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with byte_bar("m", shown=False) as update:
        update("copying", 0, 1)
    assert capsys.readouterr().err == ""

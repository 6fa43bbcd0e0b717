"""What ``sllmd plan`` shows of a way to a replica."""

from __future__ import annotations

import pytest

from sllmd.cli.plan import plan_row

WAY = {"way": "load", "node": "id-a", "source": "ssd", "why": "chosen"}


@pytest.mark.parametrize(
    ("queue", "free", "load", "total", "shown"),
    [
        (0.0, 0.0, 0.0, 0.1, ["0 ms", "0 ms", "0 ms", "100 ms", "100 ms"]),
        (0.02, 0.0, 0.269, 0.389, ["20 ms", "0 ms", "269 ms", "100 ms", "389 ms"]),
        (0.02, 0.05, 0.1, 0.25, ["20 ms", "30 ms", "100 ms", "100 ms", "250 ms"]),
        (0.5, 0.0, 0.0, 0.5, ["500 ms", "0 ms", "0 ms", "0 ms", "500 ms"]),
        (0.0, 0.0, 0.0, None, ["-"] * 5),
    ],
)
def test_the_columns_add_up(
    queue: float, free: float, load: float, total: float | None, shown: list[str]
) -> None:
    seconds = {"queue_seconds": queue, "free_seconds": free, "load_seconds": load, "total_seconds": total}
    row = plan_row(1, WAY | seconds, {"id-a": "a"})
    assert [row[column] for column in ("queue", "free", "load", "start", "total")] == shown

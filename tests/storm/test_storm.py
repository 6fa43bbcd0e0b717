"""Five real daemons survive a storm; SLLMD_STORM_SECONDS=180 makes it the full one, all ten times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.live import missing
from tests.simulation.linearizability import Operation, explain
from tests.storm.clients import Notes, Written, lost_writes
from tests.storm.namespaces import why_no_namespaces
from tests.storm.nemesis import KINDS
from tests.storm.storm import storm

SECONDS = float(os.environ.get("SLLMD_STORM_SECONDS", "20"))
EACH = 10 if SECONDS >= 180 else 1
OPERATIONS_MIN = 25 if SECONDS >= 180 else 8
"""Per second: three minutes make 5,000 with some to spare; the short storm has to pass anywhere."""


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 2 + 180)
def test_a_storm_is_survived(tmp_path: Path) -> None:
    reason = why_no_namespaces()
    if reason is not None:
        missing(reason)
    verdict = storm(tmp_path, seconds=SECONDS, each=EACH, seed=1)
    assert verdict.faults == [], verdict.text()
    assert verdict.notes.operations >= OPERATIONS_MIN * SECONDS
    assert all(verdict.misfortunes[kind] >= EACH for kind in KINDS)
    _a_planted_stale_read_is_rejected(verdict.notes)


def _a_planted_stale_read_is_rejected(notes: Notes) -> None:
    late = max(one.returned for one in notes.history if not one.open)
    key, writes = next((key, writes) for key, writes in notes.written.items() if len(writes) > 1)
    oldest = min(writes, key=lambda one: one.revision)
    stale = Operation(key, "read", late + 1, late + 2, oldest.value)
    assert explain([*notes.history, stale]) is not None


def test_a_lost_write_is_noticed() -> None:
    notes = Notes(written={"k": [Written("a", 3), Written("b", 7)]})
    assert lost_writes(notes, {"k": Written("b", 7)}) == []
    assert lost_writes(notes, {"k": Written("c", 9)}) == []
    assert lost_writes(notes, {"k": Written("a", 3)})
    assert lost_writes(notes, {"k": None})
    assert lost_writes(notes, {"k": Written("c", 7)})
    twice = Notes(written={"k": [Written("a", 3), Written("b", 3)]})
    assert lost_writes(twice, {"k": Written("b", 3)})

"""Tables on a terminal that has no room for all that rows hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmd.cli.tables import CUT_MIN, Column, fields, table, text_width

COLUMNS = (
    Column("NODE", lambda row: row["node"]),
    Column("STATUS", lambda row: row["status"]),
    Column("REQS", lambda row: str(row["requests"]), right=True),
    Column("NOTE", lambda row: row["note"], note=True),
)
LONG = "gpu-server-of-the-second-hall-17.example.com"


def row(node: str = "gpu1", note: str = "", requests: int = 3) -> dict[str, object]:
    return {"node": node, "status": "alive", "requests": requests, "note": note}


def shown(*rows: dict[str, object], width: int | None) -> list[str]:
    return table(rows, COLUMNS, wide=False, width=width).splitlines()


def test_a_pipe_gets_everything() -> None:
    [_, line] = shown(row(LONG, note="n" * 200), width=None)
    assert LONG in line
    assert line.endswith("n" * 200)


def test_what_fits_is_not_touched() -> None:
    assert shown(row(note="fine"), width=80) == shown(row(note="fine"), width=None)


def test_notes_without_room_stand_below_their_row() -> None:
    note = "no answer to gpu2, gpu3; another node has this name"
    head, first, below, more, second = shown(row(note=note), row("gpu2"), width=40)
    assert "NOTE" not in head
    assert (first.split()[0], second.split()[0]) == ("gpu1", "gpu2")
    assert f"{below.strip()} {more.strip()}" == note
    assert below.startswith("    ")


def test_long_names_give_up_their_middle_and_figures_nothing() -> None:
    [_, line] = shown(row(LONG, requests=123456789), width=40)
    assert line.startswith("gpu-serv")
    assert "…" in line
    assert ".com" in line
    assert "123456789" in line
    assert len(line) <= 40


@given(
    st.lists(st.tuples(st.text(max_size=90), st.text(max_size=200)), min_size=1, max_size=5),
    st.integers(45, 120),
)
def test_no_line_is_wider_than_the_terminal(cells: list[tuple[str, str]], width: int) -> None:
    lines = shown(*(row(node, note) for node, note in cells), width=width)
    names = [line for line in lines if not line.startswith("    ")]
    assert all(text_width(line) <= width for line in names)


@pytest.mark.parametrize("width", [1, 2, CUT_MIN])
def test_a_terminal_too_narrow_for_anything_gets_a_table_all_the_same(width: int) -> None:
    assert shown(row(LONG, note="why"), width=width)[0].split() == ["NODE", "STATUS", "REQS"]


def test_values_that_strangers_chose_are_shown_and_not_obeyed() -> None:
    assert fields([("node", "a\x1b[2J")]) == r"node  a\x1b[2J"

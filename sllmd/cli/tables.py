"""Rows as text for people and as JSON for programs. Pure."""

from __future__ import annotations

import json
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GAP, NARROW_GAP = 3, 2
"""Spaces between columns; where room is scarce."""
CUT_MIN = 8
"""A cell is not cut to less than this: what is left would name nothing any more."""
_BELOW = " " * 4


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its head, how a row's cell is written, whether only ``-o wide`` shows it.

    ``note``: the last column, remarks; those that have no room beside their row stand below it.
    """

    head: str
    cell: Callable[[Mapping[str, Any]], str]
    wide: bool = False
    right: bool = False
    note: bool = False


def table(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
    *,
    wide: bool,
    bold_head: bool = False,
    width: int | None = None,
) -> str:
    """Aligned columns under a head, each line ended; no wider than ``width``, if that can be."""
    shown = [column for column in columns if wide or not column.wide]
    cells = [[column.head for column in shown]]
    cells += [[printable(column.cell(row)) for column in shown] for row in rows]
    gap, notes = GAP, [""] * len(cells)
    if width is not None and _width(cells, GAP) > width:
        gap = NARROW_GAP
        if shown[-1].note and _width(cells, gap) > width:
            notes = ["", *(line[-1] for line in cells[1:])]
            shown, cells = shown[:-1], [line[:-1] for line in cells]
        cells = _cut(cells, shown, width)
    widths = _widths(cells)
    lines = []
    for line, note in zip(cells, notes, strict=True):
        padded = (
            _padded(text, size, right=column.right)
            for text, size, column in zip(line, widths, shown, strict=True)
        )
        lines.append((" " * gap).join(padded).rstrip())
        lines += textwrap.wrap(note, width or CUT_MIN, initial_indent=_BELOW, subsequent_indent=_BELOW)
    if bold_head:
        lines[0] = f"\033[1m{lines[0]}\033[0m"
    return "".join(f"{line}\n" for line in lines)


def _widths(cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(text_width, column)) for column in zip(*cells, strict=True)]


def _width(cells: Sequence[Sequence[str]], gap: int) -> int:
    widths = _widths(cells)
    return sum(widths) + gap * (len(widths) - 1)


def _cut(cells: list[list[str]], columns: Sequence[Column], width: int) -> list[list[str]]:
    """The widest columns of text give up what is too much; figures, and heads, are never cut."""
    widths = _widths(cells)
    floors = [
        size if column.right else min(size, max(CUT_MIN, text_width(column.head)))
        for size, column in zip(widths, columns, strict=True)
    ]
    excess = _width(cells, NARROW_GAP) - width
    while excess > 0:
        widest = max(range(len(widths)), key=lambda each: (widths[each] > floors[each], widths[each]))
        if widths[widest] <= floors[widest]:
            break
        widths[widest] -= 1
        excess -= 1
    return [[_shortened(text, size) for text, size in zip(line, widths, strict=True)] for line in cells]


def _shortened(text: str, width: int) -> str:
    """The beginning and the end tell names apart."""
    if text_width(text) <= width:
        return text
    tail = (width - 1) // 3
    head = width - 1 - tail
    while text_width(text[:head]) + 1 + text_width(text[len(text) - tail :]) > width:
        head, tail = (head - 1, tail) if head >= tail else (head, tail - 1)
    return f"{text[:head]}…{text[len(text) - tail :]}"


def fields(pairs: Sequence[tuple[str, str]], *, width: int | None = None) -> str:
    """Names and values of one thing, values aligned, and broken between words at ``width``."""
    names_width = max((text_width(name) for name, _ in pairs), default=0)
    below = " " * (names_width + 2)
    lines = []
    for name, value in pairs:
        text = printable(value)
        room = len(text) + 1 if width is None else max(CUT_MIN, width - len(below))
        first, *rest = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
        lines.append(f"{_padded(name, names_width)}  {first}".rstrip())
        lines += [f"{below}{line}" for line in rest]
    return "\n".join(lines)


def as_json(value: Any, *, lines: bool) -> str:
    """``value`` as JSON text; with ``lines`` one line for each item of a list."""
    if not lines:
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    items = value if isinstance(value, list) else [value]
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def _padded(text: str, width: int, *, right: bool = False) -> str:
    space = " " * (width - text_width(text))
    return space + text if right else text + space


def counted(count: int, noun: str) -> str:
    """``1 model``, ``2 models``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """``text`` on one line, with nothing in it that a terminal would obey: strangers name nodes and paths."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def text_width(text: str) -> int:
    """Columns on a terminal: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )

"""Rows as text for people and as JSON for programs. Pure."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its head, how a row's cell is written, whether only ``-o wide`` shows it."""

    head: str
    cell: Callable[[Mapping[str, Any]], str]
    wide: bool = False
    right: bool = False


def table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, wide: bool, bold_head: bool = False
) -> str:
    """Aligned columns under a head, each line ended."""
    shown = [column for column in columns if wide or not column.wide]
    cells = [[column.head for column in shown]]
    cells += [[printable(column.cell(row)) for column in shown] for row in rows]
    widths = [max(text_width(line[index]) for line in cells) for index in range(len(shown))]
    lines = [
        "   ".join(
            _padded(text, width, right=column.right)
            for text, width, column in zip(line, widths, shown, strict=True)
        ).rstrip()
        for line in cells
    ]
    if bold_head:
        lines[0] = f"\033[1m{lines[0]}\033[0m"
    return "".join(f"{line}\n" for line in lines)


def fields(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values of one thing, values aligned."""
    width = max((text_width(name) for name, _ in pairs), default=0)
    return "\n".join(f"{_padded(name, width)}  {value}".rstrip() for name, value in pairs)


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

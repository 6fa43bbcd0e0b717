"""Text that arrives in pieces, broken between words at a terminal's edge. Pure."""

from __future__ import annotations

import re

from sllmd.cli.tables import text_width

_PARTS = re.compile(r"\n|[^\S\n]+|\S+")


class WordWrap:
    """Gives out whole words; the last one is held back until it is known to be whole."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._column = 0
        self._held = ""

    def push(self, piece: str) -> str:
        """What can be shown now that ``piece`` has come."""
        parts = _PARTS.findall(self._held + piece)
        # A word that may go on is held back, unless it fills a line by itself.
        unfinished = bool(parts) and not parts[-1].isspace() and text_width(parts[-1]) < self._width
        self._held = parts.pop() if unfinished else ""
        return "".join(map(self._placed, parts))

    def flush(self) -> str:
        """What was held back, once nothing follows."""
        held, self._held = self._held, ""
        return self._placed(held) if held else ""

    def _placed(self, part: str) -> str:
        if part == "\n":
            self._column = 0
            return part
        width = text_width(part)
        breaks = self._column > 0 and self._column + width > self._width
        if breaks and part.isspace():
            self._column = 0
            return "\n"
        self._column = width if breaks else self._column + width
        return f"\n{part}" if breaks else part

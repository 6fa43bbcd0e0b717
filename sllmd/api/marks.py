"""Where in a stream an event is: what ``id:`` lines say, and what ``Last-Event-ID`` brings back. Pure.

One mark for each choice, joined by dots: how many tokens it has come to, ``f`` once it has told how it ended,
and the checksum of those tokens, which lets a node that computes them anew see that they are the same. ``-``:
nothing of this choice has been told, not even the prompt that it echoes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from sllmd.core.errors import InvalidRequest

_MARK = re.compile(r"(\d{1,9})(f?)(?:~([0-9a-f]{8}))?")
ID_CHARS_MAX = 64 * 1024


@dataclass(frozen=True, slots=True, order=True)
class Mark:
    """Of one choice; a later one is greater."""

    tokens: int = -1
    finished: bool = False
    checksum: int = 0

    def __str__(self) -> str:
        if self.tokens < 0:
            return "-"
        said = f"~{self.checksum:08x}" if self.tokens else ""
        return f"{self.tokens}{'f' if self.finished else ''}{said}"

    @property
    def place(self) -> tuple[int, bool]:
        """What of it is compared between streams."""
        return self.tokens, self.finished


def next_checksum(checksum: int, token_id: int) -> int:
    """Of the tokens so far and this one."""
    return crc32(token_id.to_bytes(4, "little"), checksum)


def write_marks(marks: Sequence[Mark]) -> str:
    """An event's id."""
    return ".".join(map(str, marks))


def read_marks(event_id: str, choices: int) -> list[Mark]:
    """The inverse; an empty one: from the beginning. Raises InvalidRequest."""
    if not event_id:
        return [Mark() for _ in range(choices)]
    parts = event_id.split(".") if len(event_id) <= ID_CHARS_MAX else []
    marks = [Mark() if part == "-" else _read(part) for part in parts]
    if len(marks) != choices or None in marks:
        raise InvalidRequest("`Last-Event-ID` is no event of this stream", param="Last-Event-ID")
    return [mark for mark in marks if mark is not None]


def _read(part: str) -> Mark | None:
    found = _MARK.fullmatch(part)
    if found is None:
        return None
    return Mark(int(found[1]), bool(found[2]), int(found[3] or "0", 16))

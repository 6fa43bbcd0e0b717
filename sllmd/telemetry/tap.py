"""What the log says, kept for those who follow it from elsewhere: ``sllmd monitor``.

A processor of structlog, placed where prompts are redacted already: a follower sees what the log has, and
never more of what people said. Lines below the log's own level exist only while somebody asks for them.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator, Mapping, MutableMapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from sllmd.telemetry.feed import Entry, Feed, Place

LEVELS = ("debug", "info", "warning", "error")
TEXT_CHARACTERS_MAX = 8_000
"""Of one value of a line: a traceback is rarely longer."""
NUMBER_MAX = 1 << 63
"""What fits a message; infinities and what is no number do not."""

_Event = MutableMapping[str, Any]


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which lines are wanted."""

    level: str = "info"
    """The least serious."""
    model: str | None = None
    request: str | None = None
    """A request's id."""
    _number: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_number", level_number(self.level))

    def __call__(self, line: Entry) -> bool:
        """Whether this one is."""
        return (
            level_number(line["level"]) >= self._number
            and self.model in (None, line.get("model"))
            and self.request in (None, line.get("request_id"))
        )


class LogTap:
    """The newest lines of this process's log, and who follows them."""

    def __init__(self, lines_max: int, level: str) -> None:
        self.feed = Feed(lines_max)
        self._level = level_number(level)
        self._asked: list[int] = []

    async def read(
        self, place: Place, wanted: LogFilter, *, follow: bool = True
    ) -> AsyncGenerator[Entry, None]:
        """Lines, and gaps where this reader was too slow; without end if ``follow``. Raises QueueFull."""
        with self._hearing(level_number(wanted.level)):
            async with aclosing(self.feed.read(place, follow=follow, wanted=wanted)) as lines:
                async for line in lines:
                    yield line

    def keep(self, _logger: Any, _method: str, event: _Event) -> _Event:
        """A processor: remember the line."""
        self.feed.add(_line(event))
        return event

    def pass_on(self, _logger: Any, _method: str, event: _Event) -> _Event:
        """A processor: the log itself gets no more than it is set to, whoever follows."""
        if level_number(event["level"]) < self._level:
            raise structlog.DropEvent
        return event

    @contextmanager
    def _hearing(self, level: int) -> Iterator[None]:
        """Let lines of this level come about while somebody wants them."""
        self._asked.append(level)
        self._set_level()
        try:
            yield
        finally:
            self._asked.remove(level)
            self._set_level()

    def _set_level(self) -> None:
        level = min([self._level, *self._asked])
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))


def level_number(name: str) -> int:
    """As ``logging`` counts; what it does not know is serious."""
    return logging.getLevelNamesMapping().get(name.upper(), logging.ERROR)


def _line(event: _Event) -> dict[str, Any]:
    """A line as it can be sent: what is not text or a number is written as text."""
    if event.get("exc_info"):
        event = structlog.processors.format_exc_info(None, "", dict(event))
    return {key: _plain(value) for key, value in event.items() if key != "timestamp" and key[0] != "_"}


def _plain(value: Any) -> Any:
    if isinstance(value, bool | None):
        return value
    if isinstance(value, int | float) and abs(value) < NUMBER_MAX:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    text = str(value)[:TEXT_CHARACTERS_MAX]
    return text if text.isascii() else text.encode("utf-8", "replace").decode()

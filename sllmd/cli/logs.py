"""What rooms log while a command runs, for the person who runs it."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_Event = MutableMapping[str, Any]


def configure_command_logs() -> None:
    """Warnings become lines on standard error. `sllmd start` configures logs of its own instead."""
    structlog.configure(
        processors=[structlog.stdlib.add_log_level, _without_errors, _as_line],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _without_errors(_logger: Any, _method: str, event: _Event) -> _Event:
    """An error ends the command, which tells it."""
    if event.pop("level") == "error":
        raise structlog.DropEvent
    return event


def _as_line(_logger: Any, _method: str, event: _Event) -> str:
    what = event.pop("event")
    details = ", ".join(f"{key} {value}" for key, value in event.items())
    return f"sllmd: {what}: {details}" if details else f"sllmd: {what}"

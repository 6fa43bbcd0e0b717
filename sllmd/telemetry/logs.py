"""Logs: structlog for our own events, and the standard library's loggers of others through the same pipe."""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from sllmd.telemetry.settings import LogSettings
from sllmd.telemetry.tap import LogTap

PRIVATE_KEYS = frozenset(
    {"prompt", "prompt_ids", "messages", "text", "content", "output", "output_ids", "body"}
)
"""What people say to models and back."""
_REDACTED = "[redacted]"

_Event = MutableMapping[str, Any]


def configure_logs(settings: LogSettings, *, stream: TextIO | None = None) -> LogTap:
    """Send everything to ``stream`` (standard error). Called once, when a process starts.

    What it returns remembers the newest lines.
    """
    target = stream or sys.stderr
    tap = LogTap(settings.kept_lines, settings.level)
    as_json = settings.format == "json" or (settings.format == "auto" and not target.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=as_json),
        structlog.processors.StackInfoRenderer(),
    ]
    if settings.redact_prompts:
        shared.append(redact_private)
    shared += [tap.keep, tap.pass_on]
    finish = _finish(as_json=as_json, colors=target.isatty())
    structlog.configure(
        processors=[*shared, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(_level(settings)),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=False,
    )
    _capture_standard_loggers(settings, shared, finish, target)
    return tap


def redact_private(_logger: Any, _method: str, event: _Event) -> _Event:
    """Replace the values of PRIVATE_KEYS; their length stays, for those who look for huge prompts."""
    for key in PRIVATE_KEYS & event.keys():
        value = event[key]
        event[key] = f"{_REDACTED} {len(value)}" if hasattr(value, "__len__") else _REDACTED
    return event


def _finish(*, as_json: bool, colors: bool) -> list[structlog.typing.Processor]:
    if as_json:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(ensure_ascii=False)]
    # Not rich's traceback: it shows local variables, which hold what people asked.
    plain = structlog.dev.plain_traceback
    return [_leave_out_nothing, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]


def _leave_out_nothing(_logger: Any, _method: str, event: _Event) -> _Event:
    """Without the fields that hold None: a person has no use for them, a program counts on them."""
    return {key: value for key, value in event.items() if value is not None}


def _capture_standard_loggers(
    settings: LogSettings,
    shared: list[structlog.typing.Processor],
    finish: list[structlog.typing.Processor],
    target: TextIO,
) -> None:
    """aiohttp and asyncio log through ``logging``; at most their warnings are of interest."""
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, _level(settings)))


def _level(settings: LogSettings) -> int:
    return logging.getLevelNamesMapping()[settings.level.upper()]

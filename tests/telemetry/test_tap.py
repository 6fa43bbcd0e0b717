"""What followers of the log see: the log's own lines, redacted, and more only while they ask for it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from sllmd.telemetry.feed import Place
from sllmd.telemetry.logs import configure_logs
from sllmd.telemetry.settings import LogSettings
from sllmd.telemetry.tap import LogFilter, LogTap

ALL = Place(newest=100)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield io.StringIO()
    structlog.reset_defaults()
    root.handlers[:], root.level = before


async def remembered(tap: LogTap, **wanted) -> list:
    return [line async for line in tap.read(ALL, LogFilter(**wanted), follow=False)]


async def test_lines_are_remembered_as_the_log_has_them(stream: io.StringIO) -> None:
    tap = configure_logs(LogSettings(), stream=stream)
    structlog.get_logger().warning(
        "odd",
        prompt="my secret",
        model="tiny",
        path=io,
        sizes=(1, 2),
        ratio=float("nan"),
        file="a\udcff",
    )
    [line] = await remembered(tap)
    assert (line["event"], line["level"], line["model"]) == ("odd", "warning", "tiny")
    assert line["prompt"] == "[redacted] 9"
    assert json.loads(json.dumps(line["sizes"])) == [1, 2]
    assert isinstance(line["path"], str)
    assert (line["ratio"], line["file"]) == ("nan", "a?")


async def test_crashes_are_told_whole_and_without_what_people_said(stream: io.StringIO) -> None:
    tap = configure_logs(LogSettings(), stream=stream)
    try:
        raise ValueError("boom")
    except ValueError:
        structlog.get_logger().exception("crash")
        logging.getLogger("aiohttp.server").exception("theirs")
    ours, theirs = await remembered(tap)
    assert "ValueError: boom" in ours["exception"]
    assert "ValueError: boom" in theirs["exception"]
    assert not [key for key in theirs if key.startswith("_")]
    assert len(stream.getvalue().splitlines()) == 2


async def test_filters(stream: io.StringIO) -> None:
    tap = configure_logs(LogSettings(level="debug"), stream=stream)
    log = structlog.get_logger()
    log.debug("a", model="tiny")
    log.info("b", request_id="req_1")
    log.error("c", model="tiny")
    for wanted, events in (
        ({}, "bc"),
        ({"level": "debug"}, "abc"),
        ({"level": "error"}, "c"),
        ({"level": "debug", "model": "tiny"}, "ac"),
        ({"request": "req_1"}, "b"),
    ):
        assert "".join(line["event"] for line in await remembered(tap, **wanted)) == events


async def test_lines_below_the_logs_level_exist_while_somebody_follows_them(stream: io.StringIO) -> None:
    tap = configure_logs(LogSettings(), stream=stream)
    log = structlog.get_logger()
    log.debug("before")
    reading = tap.read(Place(), LogFilter(level="debug"))
    first = asyncio.ensure_future(anext(reading))
    await asyncio.sleep(0)
    log.debug("while")
    assert (await first)["event"] == "while"
    await reading.aclose()
    log.debug("after")
    log.info("at last")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["at last"]
    assert [line["event"] for line in await remembered(tap, level="debug")] == ["while", "at last"]

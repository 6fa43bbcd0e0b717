import io
import json
import logging

import pytest
import structlog

from sllmd.telemetry.logs import configure_logs
from sllmd.telemetry.settings import LogSettings


@pytest.fixture
def log_stream():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield io.StringIO()
    structlog.reset_defaults()
    root.handlers[:], root.level = before


def lines(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_where_nobody_looks(log_stream):
    configure_logs(LogSettings(), stream=log_stream)
    structlog.get_logger().info("model loaded", model="é")
    [line] = lines(log_stream)
    assert line["event"] == "model loaded"
    assert line["level"] == "info"
    assert line["model"] == "é"
    assert line["timestamp"].endswith("Z")


def test_what_people_say_stays_out(log_stream):
    configure_logs(LogSettings(), stream=log_stream)
    structlog.get_logger().warning("odd", prompt="my secret", messages=[1, 2])
    [line] = lines(log_stream)
    assert line["prompt"] == "[redacted] 9"
    assert line["messages"] == "[redacted] 2"


def test_prompts_are_written_only_when_asked_for(log_stream):
    configure_logs(LogSettings(redact_prompts=False), stream=log_stream)
    structlog.get_logger().info("x", prompt="seen")
    assert lines(log_stream)[0]["prompt"] == "seen"


def test_levels_and_others_loggers(log_stream):
    configure_logs(LogSettings(level="warning"), stream=log_stream)
    structlog.get_logger().info("quiet")
    logging.getLogger("aiohttp.server").info("quiet too")
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("aiohttp.server").exception("crash")
    [line] = lines(log_stream)
    assert line["event"] == "crash"
    assert "ValueError: boom" in line["exception"]


def test_console_for_people(log_stream):
    configure_logs(LogSettings(format="console"), stream=log_stream)
    structlog.get_logger().info("hello", model="tiny", key=None)
    assert "hello" in log_stream.getvalue()
    assert "\x1b" not in log_stream.getvalue()
    assert "key" not in log_stream.getvalue()


def test_a_crash_on_the_console_does_not_show_what_people_asked(log_stream):
    configure_logs(LogSettings(format="console"), stream=log_stream)

    def crash(prompt: str) -> None:
        raise ValueError(f"boom {len(prompt)}")

    try:
        crash("my secret")
    except ValueError:
        structlog.get_logger().exception("request failed")
    assert "ValueError: boom 9" in log_stream.getvalue()
    assert "my secret" not in log_stream.getvalue().replace('crash("my secret")', "")

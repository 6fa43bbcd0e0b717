"""The picture of a request's time."""

from __future__ import annotations

from typing import Any

from sllmd.cli.waterfall import LINE_WIDTH, waterfall


def request(**changes: Any) -> dict[str, Any]:
    status: dict[str, Any] = {"request_id": "req_1", "model": "m", "state": "finished"}
    status |= {"cold": True, "tier": "ssd", "finish_reason": "stop", "error": None}
    status |= {"queue_ms": 100.0, "load_ms": 300.0, "load_estimate_ms": 250.0, "prefill_ms": 100.0}
    status |= {"decode_ms": 500.0, "total_ms": 1000.0, "stages_ms": {"ssd→dram": 200.0, "attach": 50.0}}
    status |= {"prompt_tokens": 7, "completion_tokens": 6, "moves": [], "node": ""}
    return status | changes


def test_a_cold_request() -> None:
    head, *lines = waterfall(request(), {}).splitlines()
    assert head == "req_1  m  COLD from ssd  finished  total 1.00 s  first token 500 ms"
    assert [line.split()[0] for line in lines] == [
        "queue",
        "ssd→dram",
        "attach",
        "start",
        "prefill",
        "decode",
    ]
    assert "estimated 250 ms" in lines[3]
    assert lines[-1].endswith("6 tokens, 10.0 tokens/s")


def test_bars_follow_each_other_and_are_as_long_as_their_share() -> None:
    lines = waterfall(request(), {}).splitlines()[1:]
    spans = [(line.index(mark), line.count("█")) for line in lines if (mark := first_mark(line))]
    starts = [start for start, _ in spans]
    assert starts == sorted(starts)
    assert spans[-1][1] == 14  # half of the time is half of the width
    assert spans[-1][0] - spans[0][0] == 14


def first_mark(line: str) -> str:
    return next((char for char in line if char in "▏▎▍▌▋▊▉█"), "")


def test_a_warm_request_has_no_start() -> None:
    text = waterfall(request(cold=False, tier="device", load_ms=0.0, stages_ms={}, load_estimate_ms=0.0), {})
    assert "  warm  " in text
    assert "start" not in text
    assert "estimated" not in text


def test_a_failed_request_says_why() -> None:
    assert waterfall(request(error="the worker is gone"), {}).endswith("error: the worker is gone")


def test_nothing_took_time() -> None:
    waterfall(
        request(queue_ms=0.0, load_ms=0.0, stages_ms={}, prefill_ms=0.0, decode_ms=0.0, total_ms=0.0), {}
    )


def test_changes_of_place_are_told_below() -> None:
    done = {"kind": "move", "result": "done", "reason": "drain", "rounds": 2, "tokens": 900, "pause_ms": 31.0}
    lost = {"kind": "failover", "result": "failed", "reason": "node b is gone", "outcome": "nobody took it"}
    done |= {"source": "n-a", "target": "n-b"}
    lost |= {"source": "n-b", "target": ""}
    names = {"n-a": "a", "n-b": "b"}
    head, *_, first, second = waterfall(request(node="n-b", moves=[done, lost]), names).splitlines()
    assert "  finished  on b  total" in head
    assert first == " moved a → b: pause 31 ms, 900 tokens, 2 rounds (drain)"
    assert second == " not resumed b → ?: nobody took it (node b is gone)"
    assert "on n-gone " in waterfall(request(node="n-gone"), names)


def test_no_line_is_wider_than_a_terminal() -> None:
    move = {"kind": "move", "source": "a", "target": "b", "result": "done", "pause_ms": 12.0, "tokens": 12345}
    move |= {"rounds": 3, "reason": "a node drains, and an operator wanted it so", "outcome": None}
    names = {"a": "a-node-with-a-long-name.example", "b": "another-node-with-a-long-name.example"}
    shown = waterfall(request(request_id="req_" + "0" * 32, node="a", moves=[move], error="x " * 80), names)
    assert max(map(len, shown.splitlines())) <= LINE_WIDTH
    assert "an operator wanted it so" in " ".join(shown.split())


def test_a_long_head_goes_on_below_and_nothing_is_broken_within() -> None:
    head, below, *_ = waterfall(request(request_id="req_" + "0" * 32, node="n"), {"n": "far"}).splitlines()
    assert head == f"req_{'0' * 32}  m  COLD from ssd  finished  on far"
    assert below == "  total 1.00 s  first token 500 ms"


def test_who_was_asked_before_is_told() -> None:
    gone = "a, which led in epoch 3: it leads no more, or is not well"
    plan = {"ways": [], "total_seconds": None, "decide_seconds": 0.05, "refusals": [gone]}
    assert f" asked before: {gone}" in waterfall(request(decision=plan), {}).splitlines()


def test_who_was_asked_before_is_told_once() -> None:
    decision = {
        "decide_seconds": 0.01,
        "ways": [],
        "total_seconds": None,
        "refusals": ("a, which led, went",),
    }
    text = waterfall(request(decision=decision), {})
    assert text.count("a, which led, went") == 1
    assert text.endswith(" asked before: a, which led, went")

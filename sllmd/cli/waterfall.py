"""Where a request's time went, drawn: one line per stage, bars begin where the last one ended. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from sllmd.cli.tables import printable, text_width
from sllmd.core.units import format_seconds

LINE_WIDTH = 80
"""Columns of a terminal that nobody widened."""
_WIDTH = 28
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def waterfall(request: Mapping[str, Any], node_names: Mapping[str, str]) -> str:
    """The picture of one RequestStatus; ``node_names``: of the cluster's nodes, by id."""
    stages = _stages(request)
    total_ms = max(sum(milliseconds for _, milliseconds, _ in stages), 1e-9)
    label_width = max(len(label) for label, _, _ in stages)
    lines = _head_lines(request, node_names)
    begin_ms = 0.0
    for label, milliseconds, note in stages:
        bar = _bar(begin_ms / total_ms, milliseconds / total_ms)
        text = f" {label:<{label_width}} {bar} {format_seconds(milliseconds / 1000):>7}"
        below = " " * (label_width + 2)
        lines += _wrapped(f"{text}  {note}".rstrip(), below)
        begin_ms += milliseconds
    for refusal in (request.get("decision") or {}).get("refusals", ()):
        lines += _wrapped(f" asked before: {printable(refusal)}", "   ")
    for move in request["moves"]:
        lines += _wrapped(_move_line(move, node_names), "   ")
    if request.get("error"):
        lines += _wrapped(f" error: {request['error']}", "   ")
    return "\n".join(lines)


def _wrapped(line: str, below: str) -> list[str]:
    return textwrap.wrap(
        line, LINE_WIDTH, subsequent_indent=below, break_long_words=False, break_on_hyphens=False
    )


def _head_lines(request: Mapping[str, Any], node_names: Mapping[str, str]) -> list[str]:
    """What it was and how it went; what has no room goes on below, and nothing is broken within."""
    first_token_ms = request["queue_ms"] + request["load_ms"] + request["prefill_ms"]
    parts = [
        str(request["request_id"]),
        str(request["model"]),
        f"COLD from {request['tier']}" if request["cold"] else "warm",
        str(request["state"]),
        *([f"on {_name(request['node'], node_names)}"] if request["node"] else []),
        f"total {format_seconds(request['total_ms'] / 1000)}",
        f"first token {format_seconds(first_token_ms / 1000)}",
    ]
    lines = parts[:1]
    for part in parts[1:]:
        longer = f"{lines[-1]}  {part}"
        if text_width(longer) <= LINE_WIDTH:
            lines[-1] = longer
        else:
            lines.append(f"  {part}")
    return lines


def _name(node: str, node_names: Mapping[str, str]) -> str:
    """A node that left the cluster has only its id."""
    return printable(node_names.get(node, node))


def _move_line(move: Mapping[str, Any], node_names: Mapping[str, str]) -> str:
    """A change of place, planned or not."""
    what = "resumed" if move["kind"] == "failover" else "moved"
    ends = [_name(node, node_names) if node else "?" for node in (move["source"], move["target"])]
    what = f"{what} {' → '.join(ends)}"
    if move["result"] != "done":
        told = move["outcome"] or move["result"]
        return f" not {what}: {told} ({move['reason']})"
    parts = [f"pause {format_seconds((move['pause_ms'] or 0.0) / 1000)}", f"{move['tokens']} tokens"]
    if move["rounds"]:
        parts.append(f"{move['rounds']} rounds")
    return f" {what}: {', '.join(parts)} ({move['reason']})"


def _stages(request: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Label, milliseconds and a note of each stage, in order of time."""
    plan = request.get("decision")
    decide_ms = min(plan["decide_seconds"] * 1000, request["queue_ms"]) if plan else 0.0
    stages = [("queue", request["queue_ms"] - decide_ms, "")]
    if plan:
        stages.append(("decide", decide_ms, _decide_note(plan)))
    parts = request["stages_ms"]
    estimate = request["load_estimate_ms"]
    note = f"estimated {format_seconds(estimate / 1000)}" if request["load_ms"] and estimate else ""
    stages += [(name, milliseconds, "") for name, milliseconds in parts.items()]
    rest_ms = request["load_ms"] - sum(parts.values())
    if parts and rest_ms >= 1:
        stages.append(("start", rest_ms, note))
    elif not parts:
        stages.append(("load", request["load_ms"], note))
    stages.append(("prefill", request["prefill_ms"], f"{request['prompt_tokens']} tokens"))
    stages.append(("decode", request["decode_ms"], _decode_note(request)))
    return stages


def _decide_note(plan: Mapping[str, Any]) -> str:
    """What was chosen, and what it was expected to take."""
    if not plan["ways"] or plan["total_seconds"] is None:
        return ""
    way = plan["ways"][0]
    return f"{way['way']} {way['source']}".rstrip() + f", estimated {format_seconds(plan['total_seconds'])}"


def _decode_note(request: Mapping[str, Any]) -> str:
    tokens, milliseconds = request["completion_tokens"], request["decode_ms"]
    if tokens > 1 and milliseconds > 0:
        return f"{tokens} tokens, {(tokens - 1) * 1000 / milliseconds:.1f} tokens/s"
    return f"{tokens} tokens"


def _bar(begin: float, share: float) -> str:
    """A bar of eighths of a character; the shortest one can still be seen."""
    first = min(int(begin * _WIDTH), _WIDTH - 1)
    eighths = max(1, round(share * _WIDTH * 8)) if share > 0 else 0
    eighths = min(eighths, (_WIDTH - first) * 8)
    bar = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
    return " " * first + bar + " " * (_WIDTH - first - len(bar))

"""One request's choices out to its client, as a stream or as one body.

The status line waits for the first token (or ``hold_headers``), so that what fails before it still has a real
status, and so that headers can tell where the time went.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import structlog
from aiohttp import web

from sllmd.api.choices import Choices
from sllmd.api.chunks import Chunks, StreamShape, compact, usage_of
from sllmd.api.errors import ErrorReply, internal_reply, reply_to
from sllmd.api.events import EventStream
from sllmd.api.openai import ChatRequest, CompletionRequest
from sllmd.api.rooms import EXCHANGE, ROOMS, Exchange, Rooms
from sllmd.core.errors import SllmdError
from sllmd.roles.generation import Delta, Timing
from sllmd.roles.operator import Operator

_log = structlog.get_logger(__name__)


async def stream_choices(
    request: web.Request,
    choices: Choices,
    chunks: Chunks,
    *,
    counts_prompt: Sequence[bool],
    headers: Mapping[str, str],
) -> web.StreamResponse:
    """Stream the deltas of ``choices`` as ``chunks`` writes them. Raises only before the first byte."""
    rooms, exchange = request.app[ROOMS], request[EXCHANGE]
    events = EventStream(request, rooms.settings)

    async def run() -> None:
        if not await choices.first_within(rooms.settings.hold_headers):
            await events.open(headers, chunks.opening())  # nobody knows yet where the time goes
        async for index, delta in choices:
            if not events.opened:
                await events.open({**headers, **timing_headers(request, choices)}, chunks.opening())
            await events.send(chunks.delta(index, delta, choices.generations[index]))
        await events.end(chunks.closing(usage_of(choices.generations, counts_prompt)))

    async with events, choices:
        try:
            await run()
        except ConnectionError:
            raise
        except Exception as error:
            if not events.opened:
                raise
            await events.fail(late_reply(error, rooms, exchange))
        finally:
            choices.record(rooms.metrics, exchange.model, exchange.began_seconds)
    return events.response


def late_reply(error: Exception, rooms: Rooms, exchange: Exchange) -> ErrorReply:
    """An error that comes after the status line."""
    if isinstance(error, SllmdError):
        rooms.count_refusal(error)
        reply = reply_to(error)
    else:
        _log.error("request failed", request_id=exchange.request_id, exc_info=error)
        reply = internal_reply(exchange.request_id)
    exchange.error_code = reply.code
    return reply


async def collect_choices(request: web.Request, choices: Choices) -> list[list[Delta]]:
    """All deltas of each choice: what a stream would say, in one piece."""
    rooms, exchange = request.app[ROOMS], request[EXCHANGE]
    deltas: list[list[Delta]] = [[] for _ in choices.generations]
    async with choices:
        try:
            async for index, delta in choices:
                deltas[index].append(delta)
        finally:
            choices.record(rooms.metrics, exchange.model, exchange.began_seconds)
    return deltas


def whole_answer(
    request: web.Request,
    shape: StreamShape,
    kind: str,
    choices: Choices,
    answers: Sequence[dict[str, Any]],
    *,
    counts_prompt: Sequence[bool],
    headers: Mapping[str, str],
) -> web.Response:
    """The answer to a request that did not ask for a stream."""
    body = {
        "id": shape.completion_id,
        "object": kind,
        "created": shape.created,
        "model": shape.model,
        "choices": answers,
        "usage": usage_of(choices.generations, counts_prompt),
    }
    return web.Response(
        text=compact(body),
        content_type="application/json",
        headers={**headers, **timing_headers(request, choices)},
    )


def new_shape(wanted: CompletionRequest | ChatRequest, id_prefix: str) -> StreamShape:
    """What the chunks of this answer will share."""
    options = wanted.stream_options
    return StreamShape(
        completion_id=f"{id_prefix}-{uuid4().hex}",
        created=int(time.time()),
        model=wanted.model,
        include_usage=options is not None and options.include_usage,
        continuous_usage=options is not None and options.continuous_usage_stats,
    )


def timing_headers(request: web.Request, choices: Choices) -> dict[str, str]:
    """Where it ran and where the time went until now, by the first choice: all wait for the same model."""
    timing = choices.generations[0].timing
    return {
        "Server-Timing": server_timing(timing),
        "X-Sllmd-Cold": "1" if timing.cold else "0",
        "X-Sllmd-Ran-On": ", ".join(_ran_on(request.app[ROOMS].operator, choices)),
        "X-Sllmd-Tier": timing.tier,
    }


def _ran_on(operator: Operator, choices: Choices) -> list[str]:
    """The names of the nodes that generated, in order of time."""
    nodes: dict[str, None] = {}
    for generation in choices.generations:
        passages = generation.carriage.passages if generation.carriage is not None else ()
        for passage in passages:
            if passage.result == "done":
                nodes |= dict.fromkeys((passage.source, passage.target))
        nodes[generation.timing.node] = None
    desk = operator.cluster
    return [desk.fleet.name_of(node) if node and desk is not None else operator.node for node in nodes]


def server_timing(timing: Timing) -> str:
    """``queue;dur=3, load;dur=812;desc="ssd→dram", prefill;dur=41``."""
    stages = max(timing.stages, key=lambda stage: timing.stages[stage], default="")
    described = f';desc="{stages}"' if stages else ""
    return (
        f"queue;dur={timing.queue_ms:.1f}, load;dur={timing.load_ms:.1f}{described},"
        f" prefill;dur={timing.prefill_ms:.1f}"
    )


def ignored_header(names: Sequence[str]) -> dict[str, str]:
    """Names the fields that were ignored; those that would not make a header are counted."""
    if not names:
        return {}
    plain = [name for name in names if name.isascii() and name.isprintable() and len(name) <= 64][:32]
    rest = len(names) - len(plain)
    return {"X-Sllmd-Ignored-Params": ", ".join([*plain, *([f"and {rest} more"] if rest else [])])}

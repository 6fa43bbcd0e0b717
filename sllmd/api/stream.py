"""One request's choices out to its client, as a stream or as one body.

The status line waits for the first token (or ``hold_headers``), so that what fails before it still has a real
status, and so that headers can tell where the time went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog
from aiohttp import web

from sllmd.api.choices import Choices
from sllmd.api.chunks import Chunks, usage_of
from sllmd.api.errors import ErrorReply, internal_reply, reply_to
from sllmd.api.events import EventStream
from sllmd.api.rooms import EXCHANGE, ROOMS, Exchange
from sllmd.core.errors import SllmdError
from sllmd.roles.generation import Timing

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
            await events.open({**headers, **timing_headers(choices)}, chunks.opening())
        async for index, delta in choices:
            if not events.opened:
                await events.open({**headers, **timing_headers(choices)}, chunks.opening())
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
            await events.fail(_late_reply(error, exchange))
        finally:
            choices.record(rooms.metrics, exchange.model, exchange.began_seconds)
    return events.response


def _late_reply(error: Exception, exchange: Exchange) -> ErrorReply:
    """An error that comes after the status line."""
    if isinstance(error, SllmdError):
        reply = reply_to(error)
    else:
        _log.error("request failed", request_id=exchange.request_id, exc_info=error)
        reply = internal_reply(exchange.request_id)
    exchange.error_code = reply.code
    return reply


def timing_headers(choices: Choices) -> dict[str, str]:
    """Where the time went until now, by the first choice: all wait for the same model."""
    timing = choices.generations[0].timing
    return {
        "Server-Timing": server_timing(timing),
        "X-Sllmd-Cold": "1" if timing.cold else "0",
        "X-Sllmd-Tier": timing.tier,
    }


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

"""Events and log lines as server-sent events that a client can resume.

An id names an entry of one node's feed in one run of its daemon. Who comes back to the same daemon with
``Last-Event-ID`` goes on where it was; entries that are gone, another node, or a daemon that was restarted
meanwhile are told by an entry of kind ``gap``, and what is remembered there follows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress

from aiohttp import web

from sllmd.api.access import authorize
from sllmd.api.chunks import compact
from sllmd.api.errors import reply_to
from sllmd.api.events import EventStream
from sllmd.api.rooms import ROOMS
from sllmd.core.errors import ConfigError, ControlUnavailable, InvalidRequest, SllmdError
from sllmd.core.units import parse_duration_seconds
from sllmd.roles.desk import ClusterDesk
from sllmd.roles.following import log_filter
from sllmd.telemetry.feed import Entry, Place

OPENING = b"retry: 1000\n\n"
"""Says that the stream is there, and how many milliseconds to wait before coming back."""
NEWEST_MAX = 100_000

CLOSING = web.AppKey("closing", asyncio.Event)
"""Set when the API closes: followers would stay for ever."""


async def events(request: web.Request) -> web.StreamResponse:
    """Handler: what happens on this node and in its cluster, or as ``node`` sees it."""
    rooms = request.app[ROOMS]
    node, place, follow = request.query.get("node"), _place(request), flag(request, "follow", default=True)
    if node is None:
        return await _stream(request, rooms.operator.following.events(place, follow=follow))
    return await _stream(request, desk_of(request).events(node, place, follow=follow))


async def logs(request: web.Request) -> web.StreamResponse:
    """Handler: the log of this node or of ``node``, by ``level``, ``model`` and ``request``."""
    rooms, query = request.app[ROOMS], request.query
    node, place, follow = query.get("node"), _place(request), flag(request, "follow", default=True)
    wanted = log_filter(query.get("level", "info"), query.get("model"), query.get("request"))
    if node is None:
        return await _stream(request, rooms.operator.following.logs(place, wanted, follow=follow))
    return await _stream(request, desk_of(request).logs(node, place, wanted, follow=follow))


def desk_of(request: web.Request) -> ClusterDesk:
    """The cluster's desk. Raises ControlUnavailable while this node has not joined."""
    desk = request.app[ROOMS].operator.cluster
    if desk is None:
        raise ControlUnavailable("this node has not joined its cluster yet", retry_after_seconds=1)
    return desk


async def _stream(request: web.Request, source: AsyncGenerator[Entry, None]) -> web.StreamResponse:
    async with aclosing(source), EventStream(request, request.app[ROOMS].settings) as stream:
        await stream.open({}, OPENING)
        try:
            async with aclosing(_until(request.app[CLOSING], source)) as entries:
                async for entry in entries:
                    authorize(request)  # the key may have been revoked meanwhile: this stream has no end
                    await stream.send(_event(entry))
        except SllmdError as error:
            await stream.fail(reply_to(error))
        else:
            await stream.end()
    return stream.response


def _event(entry: Entry) -> bytes:
    line = f"id: {entry['id']}\n" if entry["id"] is not None else ""
    return f"{line}data: {compact(entry)}\n\n".encode()


async def _until(closing: asyncio.Event, source: AsyncIterator[Entry]) -> AsyncGenerator[Entry, None]:
    """Entries until the source ends or the API closes."""
    closed = asyncio.ensure_future(closing.wait())
    coming: asyncio.Future[Entry] | None = None
    try:
        while not closing.is_set():
            coming = asyncio.ensure_future(anext(source))
            await asyncio.wait([coming, closed], return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                try:
                    yield coming.result()
                except StopAsyncIteration:
                    return
    finally:
        closed.cancel()
        if coming is not None:
            coming.cancel()
            with suppress(asyncio.CancelledError, StopAsyncIteration, SllmdError):
                await coming


def _place(request: web.Request) -> Place:
    """Where to begin: ``Last-Event-ID`` or ``after``, ``since``, or the ``newest`` so many."""
    query = request.query
    after = request.headers.get("Last-Event-ID") or query.get("after")
    since_seconds = _since_seconds(query["since"]) if "since" in query else None
    return Place(after, since_seconds, _newest(query.get("newest", "0")))


def _since_seconds(text: str) -> float:
    """Unix seconds, or a duration ago. Raises InvalidRequest."""
    with suppress(ValueError):
        return float(text)
    try:
        return time.time() - parse_duration_seconds(text)
    except ConfigError:
        raise InvalidRequest(
            f"`since={text}` is no time: write Unix seconds, or how long ago, such as 10m", param="since"
        ) from None


def _newest(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > len(str(NEWEST_MAX)):
        raise InvalidRequest(f"`newest={text}` is no number from 0 to {NEWEST_MAX}", param="newest")
    return int(text)


def flag(request: web.Request, name: str, *, default: bool) -> bool:
    """A query's switch. Raises InvalidRequest."""
    text = request.query.get(name)
    if text is None:
        return default
    if text not in ("true", "false", "1", "0"):
        raise InvalidRequest(f"`{name}={text}` is neither true nor false", param=name)
    return text in ("true", "1")

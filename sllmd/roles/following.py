"""Events and log lines of any node, followed from any other.

Each node has feeds of its own; a reader of another node's reads them through one stream between the two,
which moves only as fast as it is read. A slow reader slows nobody, and loses entries where they come about.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from sllmd.core.errors import InvalidRequest, ProtocolError
from sllmd.core.ids import NodeId
from sllmd.telemetry.feed import Entry, Feed, Place
from sllmd.telemetry.tap import LEVELS, LogFilter, LogTap
from sllmd.wire.rpc.connection import Connection
from sllmd.wire.rpc.methods import Caller, Methods

LOGS = "logs"
EVENTS = "events"

Connect = Callable[[NodeId], Awaitable[Connection]]


class Following:
    """What follows this node's feeds, and this node's way to those of others."""

    def __init__(self, events: Feed, tap: LogTap | None) -> None:
        """``tap`` None: nobody set this process's log up, so that it has no lines."""
        self.feed = events
        self._tap = tap

    def offer(self, methods: Methods) -> None:
        """Let other nodes follow."""
        methods.stream(LOGS, self._serve_logs)
        methods.stream(EVENTS, self._serve_events)

    def events(self, place: Place, *, follow: bool = True) -> AsyncGenerator[Entry, None]:
        """This node's events. Raises QueueFull."""
        return self.feed.read(place, follow=follow)

    def logs(self, place: Place, wanted: LogFilter, *, follow: bool = True) -> AsyncGenerator[Entry, None]:
        """This node's log. Raises QueueFull."""
        if self._tap is None:
            return Feed(1).read(follow=False)
        return self._tap.read(place, wanted, follow=follow)

    async def _serve_logs(self, body: Any, _caller: Caller) -> AsyncGenerator[Any, None]:
        place, follow, wanted = _asked(body)
        async with aclosing(self.logs(place, log_filter(**wanted), follow=follow)) as lines:
            async for line in lines:
                yield line

    async def _serve_events(self, body: Any, _caller: Caller) -> AsyncGenerator[Any, None]:
        place, follow, _ = _asked(body)
        async with aclosing(self.events(place, follow=follow)) as events:
            async for event in events:
                yield event


async def remote_events(
    connect: Connect, node: NodeId, place: Place, *, follow: bool = True
) -> AsyncGenerator[Entry, None]:
    """Another node's events. Raises PeerError, QueueFull."""
    async with aclosing(_remote(connect, node, EVENTS, _asking(place, follow, {}))) as events:
        async for event in events:
            yield event


async def remote_logs(
    connect: Connect, node: NodeId, place: Place, wanted: LogFilter, *, follow: bool = True
) -> AsyncGenerator[Entry, None]:
    """Another node's log. Raises PeerError, QueueFull."""
    filters = {"level": wanted.level, "model": wanted.model, "request": wanted.request}
    async with aclosing(_remote(connect, node, LOGS, _asking(place, follow, filters))) as lines:
        async for line in lines:
            yield line


def log_filter(level: str = "info", model: str | None = None, request: str | None = None) -> LogFilter:
    """A filter of what somebody asks for. Raises InvalidRequest."""
    if level not in LEVELS:
        raise InvalidRequest(f"`{level}` is no level; {', '.join(LEVELS)} are", param="level")
    return LogFilter(level, model, request)


async def _remote(connect: Connect, node: NodeId, method: str, body: Any) -> AsyncGenerator[Entry, None]:
    connection = await connect(node)
    async with connection.stream(method, body) as entries:
        async for entry in entries:
            if not isinstance(entry, dict):
                raise ProtocolError(f"an entry of `{method}` that cannot be understood")
            yield entry


def _asking(place: Place, follow: bool, filters: Mapping[str, str | None]) -> tuple[Any, ...]:
    return (place.after, place.since_seconds, place.newest, follow, dict(filters))


def _asked(body: Any) -> tuple[Place, bool, dict[str, Any]]:
    """The inverse; raises ProtocolError."""
    match body:
        case (
            str() | None as after,
            float() | int() | None as since,
            int(newest),
            bool(follow),
            dict(filters),
        ):
            known = {key: filters.get(key) for key in ("level", "model", "request")}
            if all(value is None or isinstance(value, str) for value in known.values()):
                given = {key: value for key, value in known.items() if value is not None}
                return Place(after, since, newest), follow, given
    raise ProtocolError("what is to be followed cannot be understood")

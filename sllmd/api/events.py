"""Server-sent events over one HTTP response: headers, bytes, silence, slow readers, the end.

Nothing is awaited per event while the client keeps up: bytes go to the transport at once, and only when much
of it lies unsent the sender waits, with a bound, after which the client counts as gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self, cast

from aiohttp import web
from aiohttp.http import StreamWriter

from sllmd.api.chunks import DONE, KEEPALIVE, event
from sllmd.api.errors import ErrorReply
from sllmd.api.sending import UNSENT_BYTES_MAX, taken_within
from sllmd.api.settings import ApiSettings
from sllmd.telemetry.supervising import end_tasks

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class EventStream:
    """``async with EventStream(...)``: ``open`` once, then ``send``, then ``end`` or ``fail``."""

    def __init__(self, request: web.Request, settings: ApiSettings) -> None:
        self.response = web.StreamResponse(headers=HEADERS)
        self.opened = False
        self._request = request
        self._settings = settings
        self._writer: StreamWriter | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._last_sent_seconds = 0.0
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop_keeping()

    async def open(self, headers: Mapping[str, str], events: bytes = b"") -> None:
        """Send status, headers and the first events: from here on a failure is an event."""
        self.response.headers.update(headers)
        self._writer = cast("StreamWriter", await self.response.prepare(self._request))
        self.opened = True
        self._last_sent_seconds = self._loop.time()
        if self._settings.sse_keepalive > 0:
            self._keeper = asyncio.create_task(self._keep_alive())
        await self.send(events)

    async def send(self, events: bytes) -> None:
        """Hand ``events`` over. Raises ConnectionResetError when the client is gone or does not read."""
        assert self._writer is not None, "open() comes first"
        if not events:
            return
        self._last_sent_seconds = self._loop.time()
        await self._writer.write(events, drain=False)
        transport = self._request.transport
        if transport is not None and transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            async with taken_within(self._request, self._settings.stalled_client_timeout):
                await self._writer.drain()

    async def end(self, events: bytes = b"") -> None:
        """The last events, ``[DONE]``, and nothing after it."""
        await self._stop_keeping()
        await self.send(events + DONE)
        await self.response.write_eof()

    async def fail(self, reply: ErrorReply) -> None:
        """An error after the headers: an event that official clients raise, then ``[DONE]``."""
        await self.end(event(reply.body()))

    async def _keep_alive(self) -> None:
        """A comment after every so many seconds of silence."""
        silence_seconds = self._settings.sse_keepalive
        while True:
            due_seconds = self._last_sent_seconds + silence_seconds - self._loop.time()
            if due_seconds > 0:
                await asyncio.sleep(due_seconds)
            else:
                await self.send(KEEPALIVE)

    async def _stop_keeping(self) -> None:
        keeper, self._keeper = self._keeper, None
        await end_tasks(keeper)  # if it failed the client is gone, and whoever sends next meets that too

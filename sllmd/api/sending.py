"""Bytes to a client that may read slowly, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import cast

from aiohttp import web
from aiohttp.http import StreamWriter

UNSENT_BYTES_MAX = 64 * 1024
"""Bytes that may lie unsent before the sender waits; a stream's events of about a second."""


@asynccontextmanager
async def taken_within(request: web.Request, seconds: float) -> AsyncGenerator[None, None]:
    """What is sent inside must be taken in time, else the client is cut off: ConnectionResetError."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client stopped reading") from None


async def send_whole(request: web.Request, response: web.Response, seconds: float) -> web.StreamResponse:
    """Send an answer, a long one piece by piece; each piece must be taken within ``seconds``."""
    body = response.body
    if not isinstance(body, bytes) or len(body) <= UNSENT_BYTES_MAX or request.method == "HEAD":
        async with taken_within(request, seconds):
            await response.prepare(request)
            await response.write_eof()
        return response
    pieces = web.StreamResponse(status=response.status, headers=response.headers)
    pieces.content_length = len(body)
    writer = cast("StreamWriter", await pieces.prepare(request))
    for start in range(0, len(body), UNSENT_BYTES_MAX):
        async with taken_within(request, seconds):
            await writer.write(body[start : start + UNSENT_BYTES_MAX])
            await writer.drain()
    async with taken_within(request, seconds):
        await pieces.write_eof()
    return pieces

"""A server of checkpoints, as a hub is one, whose pace the bench sets and nobody is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

_PIECE_BYTES = 128 * 1024


class Origin:
    """Answers ranges of published files; all answers together keep to ``bytes_per_second``."""

    def __init__(self, bytes_per_second: int) -> None:
        self.bytes_per_second = bytes_per_second
        self.address = ""
        self._published: dict[str, Path] = {}
        self._free_at = 0.0

    def publish(self, name: str, directory: Path) -> str:
        """The address of a checkpoint's directory."""
        self._published[name] = directory
        return f"{self.address}/{name}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Handler: a file, or the range of it that is asked for."""
        directory = self._published.get(request.match_info["name"], Path("/nowhere"))
        file = directory / request.match_info["file"]
        if not file.is_file():
            raise web.HTTPNotFound
        size = file.stat().st_size
        start, stop, _ = request.http_range.indices(size)
        ranged = request.headers.get("Range") is not None
        response = web.StreamResponse(status=206 if ranged else 200, headers={"ETag": f'"{size}"'})
        response.content_length = stop - start
        if ranged:
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        await response.prepare(request)
        with file.open("rb") as opened:
            opened.seek(start)
            while start < stop and request.method == "GET":
                piece = opened.read(min(_PIECE_BYTES, stop - start))
                start += len(piece)
                await self._turn(len(piece))
                await response.write(piece)
        return response

    async def _turn(self, count: int) -> None:
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + count / self.bytes_per_second
        await asyncio.sleep(self._free_at - now)


@asynccontextmanager
async def origin(bytes_per_second: int) -> AsyncIterator[Origin]:
    """A server on loopback."""
    served = Origin(bytes_per_second)
    application = web.Application()
    application.router.add_get("/{name}/{file}", served.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.address = runner.addresses and f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield served
    finally:
        await runner.cleanup()

"""Calls that this side makes: what waits for their answers, and streams as their readers see them."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Any, Self

from sllmd.core.errors import DeadlineExceeded, ProtocolError, QueueFull, SllmdError
from sllmd.core.units import format_seconds
from sllmd.wire.codec import unpack_payload
from sllmd.wire.rpc.envelope import ITEM_OVERHEAD_BYTES, Kind
from sllmd.wire.rpc.faults import copy_of, decode_fault
from sllmd.wire.rpc.outlet import Outlet
from sllmd.wire.rpc.settings import RpcSettings

_RETRY_SECONDS = 0.1
"""Until some of this node's own calls will have been answered."""


class Outgoing:
    """The calls of one connection that wait for an answer."""

    def __init__(self, outlet: Outlet, settings: RpcSettings) -> None:
        self._outlet = outlet
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[Any] | ReplyStream] = {}
        self._last_number = 0
        self._lost: SllmdError | None = None

    @property
    def count(self) -> int:
        """Calls under way."""
        return len(self._waiting)

    async def call(self, method: str, body: Any, deadline_seconds: float) -> Any:
        """See ``Connection.call``."""
        number = self._number()
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[number] = answer
        try:
            async with asyncio.timeout(deadline_seconds):
                if self._outlet.full:
                    await self._outlet.room()
                if not answer.done():
                    milliseconds = _milliseconds(deadline_seconds)
                    self._outlet.put(Kind.CALL, (number, method, body, milliseconds, 0))
                return await answer
        except TimeoutError:
            waited = format_seconds(deadline_seconds)
            raise DeadlineExceeded(f"no answer to `{method}` within {waited}") from None
        finally:
            if self._waiting.pop(number, None) is not None and self._lost is None:
                self._outlet.put(Kind.CANCEL, (number,))

    def stream(self, method: str, body: Any, deadline_seconds: float | None) -> ReplyStream:
        """See ``Connection.stream``."""
        number = self._number()
        window = self._settings.stream_window_bytes
        milliseconds = None if deadline_seconds is None else _milliseconds(deadline_seconds)
        self._outlet.put(Kind.CALL, (number, method, body, milliseconds, int(window)))
        stream = ReplyStream(number, self._outlet, self._settings, self._waiting)
        self._waiting[number] = stream
        return stream

    def _number(self) -> int:
        if self._lost is not None:
            raise copy_of(self._lost)
        if len(self._waiting) >= self._settings.calls_max:
            raise QueueFull(
                f"{len(self._waiting)} calls are under way on one connection",
                retry_after_seconds=_RETRY_SECONDS,
            )
        self._last_number += 1
        return self._last_number

    def result(self, message: Any) -> None:
        """A RESULT arrived; ProtocolError when it is none."""
        match message:
            case (int(number), body):
                answer = self._waiting.get(number)
            case _:
                raise ProtocolError("a result that cannot be understood")
        if isinstance(answer, ReplyStream):
            raise ProtocolError("a result in the place of a stream")
        if answer is not None:
            del self._waiting[number]
            if not answer.done():
                answer.set_result(body)

    def items(self, message: Any) -> None:
        """ITEMS arrived; those of streams that were left are dropped."""
        if not isinstance(message, tuple) or len(message) % 2:
            raise ProtocolError("items that cannot be understood")
        parts = iter(message)
        for number, payload in zip(parts, parts, strict=True):
            stream = self._waiting.get(number)
            if stream is None:
                continue
            if not isinstance(payload, bytes) or not isinstance(stream, ReplyStream):
                raise ProtocolError("items that cannot be understood")
            stream.take(payload)

    def end(self, message: Any) -> None:
        """An END arrived."""
        match message:
            case (int(number),):
                stream = self._waiting.pop(number, None)
            case _:
                raise ProtocolError("an end that cannot be understood")
        if isinstance(stream, asyncio.Future):
            raise ProtocolError("a stream's end in the place of a result")
        if stream is not None:
            stream.finish(None)

    def fault(self, message: Any) -> None:
        """A FAULT arrived."""
        match message:
            case (int(number), fault):
                error = decode_fault(fault)
            case _:
                raise ProtocolError("an error that cannot be understood")
        self._fail(self._waiting.pop(number, None), error)

    def close(self, lost: SllmdError) -> None:
        """The connection is gone: tell everybody who waits."""
        self._lost = lost
        waiting = list(self._waiting.values())
        self._waiting.clear()
        for each in waiting:
            self._fail(each, copy_of(lost))

    def _fail(self, waiting: asyncio.Future[Any] | ReplyStream | None, error: SllmdError) -> None:
        match waiting:
            case ReplyStream():
                waiting.finish(error)
            case asyncio.Future() if not waiting.done():
                waiting.set_exception(error)


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


class ReplyStream:
    """Items of one stream, in order; an async iterator for one reader.

    Use it as ``async with``: leaving early cancels the source. What was not read yet is at most
    ``stream_window_bytes`` and one item. Raises the source's error, or PeerUnreachable, after the items
    that came before it.
    """

    def __init__(
        self,
        number: int,
        outlet: Outlet,
        settings: RpcSettings,
        waiting: dict[int, asyncio.Future[Any] | ReplyStream],
    ) -> None:
        self._number = number
        self._outlet = outlet
        self._waiting = waiting
        self._window = int(settings.stream_window_bytes)
        self._unread_max = self._window + settings.item_bytes_max + ITEM_OVERHEAD_BYTES
        self._items: deque[bytes] = deque()
        self._unread = 0
        self._owed = 0
        """Bytes read that the source was not told of yet."""
        self._over = False
        self._error: SllmdError | None = None
        self._arrived: asyncio.Future[None] | None = None

    @property
    def unread_bytes(self) -> int:
        """What it holds."""
        return self._unread

    def take(self, payload: bytes) -> None:
        """An item arrived; ProtocolError when the source sends more than it may."""
        self._unread += len(payload) + ITEM_OVERHEAD_BYTES
        if self._unread > self._unread_max:
            raise ProtocolError(f"{self._unread} bytes of one stream came unasked")
        self._items.append(payload)
        self._wake()

    def finish(self, error: SllmdError | None) -> None:
        """Nothing more will come."""
        self._over = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None:
            if not self._arrived.done():
                self._arrived.set_result(None)
            self._arrived = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if not self._items and not await self._more():
            raise StopAsyncIteration
        return self._pop()

    async def batch(self) -> list[Any]:
        """All items that are there, at least one; empty at the end."""
        if not self._items and not await self._more():
            return []
        return [self._pop() for _ in range(len(self._items))]

    async def _more(self) -> bool:
        """Wait for an item; False: the end."""
        while not self._items:
            if self._over:
                if self._error is not None:
                    raise self._error
                return False
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived
        return True

    def _pop(self) -> Any:
        payload = self._items.popleft()
        size = len(payload) + ITEM_OVERHEAD_BYTES
        self._unread -= size
        self._owed += size
        if self._owed * 2 >= self._window and not self._over:
            self._outlet.put(Kind.CREDIT, (self._number, self._owed))
            self._owed = 0
        return unpack_payload(payload)

    async def aclose(self) -> None:
        """Leave; the source is cancelled if it is not over. Idempotent."""
        if self._waiting.pop(self._number, None) is not None:
            self._outlet.put(Kind.CANCEL, (self._number,))
        self._items.clear()
        self._unread = 0
        self._over = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

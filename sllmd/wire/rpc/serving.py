"""Calls that the other side made: one task each."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import structlog

from sllmd.core.errors import DeadlineExceeded, ProtocolError, QueueFull, SllmdError
from sllmd.wire.codec import pack_payload
from sllmd.wire.rpc.envelope import ITEM_OVERHEAD_BYTES, Kind
from sllmd.wire.rpc.faults import encode_fault
from sllmd.wire.rpc.methods import Caller, Methods
from sllmd.wire.rpc.outlet import Outlet
from sllmd.wire.rpc.settings import RpcSettings

_log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0
"""Told to a caller that has too many calls under way."""


class _Answer:
    """A call under way."""

    def __init__(
        self, number: int, method: str, body: Any, deadline_seconds: float | None, credit: int
    ) -> None:
        self.number = number
        self.method = method
        self.body = body
        self.deadline_seconds = deadline_seconds
        self.credit = credit
        """Bytes that may still be sent of a stream before its reader has read some."""
        self.credited: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None]


class Serving:
    """The calls of one connection that this side answers."""

    def __init__(self, methods: Methods, outlet: Outlet, settings: RpcSettings) -> None:
        self._methods = methods
        self._outlet = outlet
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._answers: dict[int, _Answer] = {}
        self._ending: set[asyncio.Task[None]] = set()
        """Cancelled ones that have not come to their end yet."""

    @property
    def count(self) -> int:
        """Calls under way."""
        return len(self._answers)

    def call(self, message: Any, caller: Caller) -> None:
        """A CALL arrived; ProtocolError when it is none."""
        match message:
            case (int(number), str(method), body, int() | None as milliseconds, int(credit)) if (
                number not in self._answers and credit >= 0
            ):
                deadline = None if milliseconds is None else max(milliseconds, 0) / 1000
                answer = _Answer(number, method, body, deadline, credit)
            case _:
                raise ProtocolError("a call that cannot be understood")
        if len(self._answers) + len(self._ending) >= self._settings.calls_max:
            busy = QueueFull(
                f"{self._settings.calls_max} calls are under way on one connection",
                retry_after_seconds=_RETRY_SECONDS,
            )
            self._outlet.put(Kind.FAULT, (number, encode_fault(busy)))
            return
        self._answers[number] = answer
        answer.task = self._loop.create_task(self._run(answer, caller))

    def credit(self, message: Any) -> None:
        """A CREDIT arrived."""
        match message:
            case (int(number), int(count)) if count > 0:
                answer = self._answers.get(number)
            case _:
                raise ProtocolError("a credit that cannot be understood")
        if answer is not None:
            # Credit beyond a window would let the peer take back its own backpressure.
            answer.credit = min(answer.credit + count, self._settings.output_bytes_max)
            if answer.credited is not None and answer.credit > 0 and not answer.credited.done():
                answer.credited.set_result(None)

    def cancel(self, message: Any) -> None:
        """A CANCEL arrived."""
        match message:
            case (int(number),):
                answer = self._answers.pop(number, None)
            case _:
                raise ProtocolError("a cancel that cannot be understood")
        if answer is not None:
            self._stop(answer)

    def note(self, message: Any, caller: Caller) -> None:
        """A NOTE arrived. One that nobody here knows is dropped: it may be of a newer release."""
        match message:
            case (str(method), body):
                handler = self._methods.find_note(method, caller)
            case _:
                raise ProtocolError("a note that cannot be understood")
        if handler is None:
            return
        try:
            handler(body, caller)
        except SllmdError as error:
            _log.warning("note refused", method=method, node=caller.node, reason=str(error))
        except Exception:  # noqa: BLE001  a crash over one message must not take the connection with it
            _log.exception("note crashed", method=method, node=caller.node)

    def close(self) -> None:
        """The connection is gone: cancel everything."""
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            self._stop(answer)

    async def ended(self) -> None:
        """After ``close``: every handler has come to its end."""
        if self._ending:
            await asyncio.wait(self._ending)

    def _stop(self, answer: _Answer) -> None:
        self._ending.add(answer.task)
        answer.task.add_done_callback(self._ending.discard)
        answer.task.cancel()

    async def _run(self, answer: _Answer, caller: Caller) -> None:
        try:
            async with asyncio.timeout(answer.deadline_seconds) as deadline:
                await self._answer(answer, caller)
        except TimeoutError as error:
            late = deadline.expired()
            self._fault(answer, DeadlineExceeded(f"`{answer.method}` took too long") if late else error)
        except Exception as error:  # noqa: BLE001  a crash of one call becomes its caller's error
            self._fault(answer, error)
        finally:
            if self._answers.get(answer.number) is answer:
                del self._answers[answer.number]

    def _fault(self, answer: _Answer, error: Exception) -> None:
        if not isinstance(error, SllmdError):
            _log.error("call crashed", method=answer.method, exc_info=error)
            # What it crashed of may be nobody else's to know, and a caller may be a stranger.
            error = SllmdError(f"`{answer.method}` crashed", hint="that node's log tells more")
        self._outlet.put(Kind.FAULT, (answer.number, encode_fault(error)))

    async def _answer(self, answer: _Answer, caller: Caller) -> None:
        if answer.credit:
            await self._stream(answer, caller)
            self._outlet.put(Kind.END, (answer.number,))
            return
        handler = self._methods.find_unary(answer.method, caller)
        result = await handler(answer.body, caller)
        if self._outlet.full:
            await self._outlet.room()
        self._outlet.put(Kind.RESULT, (answer.number, result))

    async def _stream(self, answer: _Answer, caller: Caller) -> None:
        outlet, limit = self._outlet, self._settings.item_bytes_max
        handler = self._methods.find_streaming(answer.method, caller)
        async with aclosing(handler(answer.body, caller)) as source:
            async for item in source:
                payload = pack_payload(item, limit)
                answer.credit -= len(payload) + ITEM_OVERHEAD_BYTES
                outlet.item(answer.number, payload)
                if answer.credit <= 0 or outlet.full:
                    await self._room(answer)

    async def _room(self, answer: _Answer) -> None:
        """Wait until the next item may be asked of the source."""
        while answer.credit <= 0 or self._outlet.full:
            if answer.credit <= 0:
                answer.credited = self._loop.create_future()
                await answer.credited
            else:
                await self._outlet.room()

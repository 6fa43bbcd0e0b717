"""Whole tables over TCP: this node asks a member for one, and answers those who ask.

Owns the TCP side of a member. What is asked and answered is decided by ``gossip``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import structlog

from sllmd.cluster.gossip.events import Answer, Answered, Ask, Asked, AskFailed, Event
from sllmd.cluster.gossip.messages import pack_stream, unpack_stream
from sllmd.core.errors import ProtocolError, SllmdError
from sllmd.core.units import MIB
from sllmd.telemetry.supervising import end_tasks
from sllmd.wire.inquiry import InquiryServer, inquire
from sllmd.wire.ports import BoundPort
from sllmd.wire.seal import Drop, Sealer

TABLE_BYTES_MAX = 4 * MIB
"""A table of 5,000 members takes 2 MB at most."""
INQUIRIES_MAX = 32
"""Streams served at once: what a stranger could make this node hold is this many tables."""
INQUIRY_SECONDS = 15.0

_log = structlog.get_logger(__name__)


class Inquiries:
    """Of one member; ``handle`` takes what came of them to its machine."""

    def __init__(self, sealer: Sealer, handle: Callable[[Event], None]) -> None:
        self._sealer = sealer
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._server = InquiryServer(
            sealer,
            bytes_max=TABLE_BYTES_MAX,
            connections_max=INQUIRIES_MAX,
            timeout_seconds=INQUIRY_SECONDS,
            on_question=self._on_question,
        )
        self._questions: dict[int, asyncio.Future[bytes]] = {}
        self._question_count = 0
        self._asking: set[asyncio.Task[None]] = set()

    @property
    def dropped(self) -> Counter[Drop]:
        """What arrived and was not taken, by reason."""
        return self._server.dropped

    async def open(self, bound: BoundPort) -> None:
        """Answer from now on."""
        await self._server.open(bound.streams)

    async def close(self) -> None:
        """Answer and ask nothing more."""
        await self._server.close()
        await end_tasks(*self._asking)

    async def _on_question(self, question: bytes) -> bytes | None:
        try:
            message = unpack_stream(question)
        except ProtocolError as error:
            self.dropped[Drop.MALFORMED] += 1
            _log.warning("a member asked what is no message", error=str(error))
            return None
        self._question_count += 1
        ask_id = self._question_count
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._questions[ask_id] = answer
        self._handle(Asked(self._loop.time(), ask_id, message))
        del self._questions[ask_id]
        return answer.result() if answer.done() else None

    def answer(self, action: Answer) -> None:
        """Carry it out."""
        self._questions[action.ask_id].set_result(pack_stream(action.message))

    def ask(self, action: Ask) -> None:
        """Carry it out, beside what else goes on."""
        task = self._loop.create_task(self._ask(action))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, action: Ask) -> None:
        try:
            answer = await inquire(
                self._sealer,
                action.address,
                pack_stream(action.message),
                bytes_max=TABLE_BYTES_MAX,
                timeout_seconds=action.timeout_seconds,
            )
            message = unpack_stream(answer)
        except (OSError, TimeoutError, SllmdError) as error:
            reason = str(error) or "no answer in time"
            self._handle(AskFailed(self._loop.time(), action.ask_id, reason))
        else:
            self._handle(Answered(self._loop.time(), action.ask_id, message))

"""Streams that can be resumed, on any node: by whom they are known, and how one changes its router.

Owns: the streams of this node that can be resumed, and the methods over which a node asks the others for one
and takes it::

    stream.find  (id, key)   unary: nil, or (whether it lives there, term, items known)
    stream.take  (id, key)   stream: (head, term), then (choice, items)…; nothing: it is not there

A living router goes before a copy of its own term, and ends its own side before it tells. Invariants: who
takes a stream gets a term above all that were there, so that whoever had it before is shut out by the keeper
of the copy; a stream that another key began is not there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol

import structlog

from sllmd.core.errors import ProtocolError, SllmdError
from sllmd.core.ids import GenerationId, NodeId, RequestId
from sllmd.engine.protocol import FinishedEvent, Sampling, TokenEvent
from sllmd.migration.ledger import Ledger
from sllmd.migration.mirror import Item
from sllmd.roles.generation import GenerationRequest, Known
from sllmd.roles.mirror import Mirror, Mirrored, Stream
from sllmd.roles.settings import MirrorSettings
from sllmd.roles.transcript import Transcript, pack_happening, pack_ids, unpack_ids
from sllmd.wire.codec import pack_payload, unpack_payload
from sllmd.wire.rpc.connection import Connection
from sllmd.wire.rpc.methods import Caller, Methods

FIND, TAKE = "stream.find", "stream.take"
TAKE_SECONDS = 10.0
ITEMS_PER_PIECE = 512
"""With twenty candidates for each token: half of what one message may hold."""
HEAD_BYTES_MAX = 1 << 20
VERSION = 1

_log = structlog.get_logger(__name__)

Connect = Callable[[NodeId], Awaitable[Connection]]


@dataclass(frozen=True, slots=True)
class Head:
    """What a stream is, besides its tokens."""

    key: str
    """Who began it: a hash of the API key; empty: nobody needed one."""
    form: bytes
    """How its events are written; the API's own."""
    requests: tuple[GenerationRequest, ...]
    """One for each choice."""

    def pack(self) -> bytes:
        """Raises ProtocolError when it is too long to travel."""
        requests = tuple(map(_pack_request, self.requests))
        return pack_payload((VERSION, self.key, self.form, requests), HEAD_BYTES_MAX)

    @classmethod
    def unpack(cls, packed: bytes) -> Head:
        """Raises ProtocolError."""
        match unpack_payload(packed):
            case (int(version), str(key), bytes(form), tuple(requests)) if version == VERSION:
                return cls(key, form, tuple(map(_unpack_request, requests)))
        raise ProtocolError("a stream's head that cannot be understood")


@dataclass(frozen=True, slots=True)
class Inheritance:
    """A stream, for who goes on with it under this ``term``."""

    head: Head
    term: int
    items: tuple[tuple[Item, ...], ...]

    def requests(self) -> list[GenerationRequest]:
        """Its generations, with what is known of each. Raises ProtocolError."""
        return [
            request.resumed(read_known(items))
            for request, items in zip(self.head.requests, self.items, strict=True)
        ]


class Living(Stream, Protocol):
    """A stream of this node."""

    key: str

    async def hand_over(self) -> None:
        """End here for good, but for what is known; returns when nothing of it runs."""


class Resumption:
    """See the module."""

    def __init__(
        self,
        settings: MirrorSettings,
        connect: Connect,
        others: Callable[[], Collection[NodeId]],
    ) -> None:
        """``others``: the living nodes, without this one; the same object until they change."""
        self.settings = settings
        self.mirror = Mirror(settings, self._call, others)
        self._connect = connect
        self._others = others
        self._living: dict[str, Living] = {}
        self._resuming: dict[str, asyncio.Lock] = {}

    def offer(self, methods: Methods) -> None:
        """Keep copies for others, and let them have streams."""
        self.mirror.offer(methods)
        methods.unary(FIND, self._on_find)
        methods.stream(TAKE, self._on_take)

    # -- streams of this node ------------------------------------------------------------------

    def add(self, stream: Living) -> Mirrored | None:
        """From now on it can be resumed; None: there are too many."""
        if len(self._living) >= self.settings.streams_max:
            self._forget_one_that_is_over()
        if len(self._living) >= self.settings.streams_max:
            return None
        self._living[stream.stream_id] = stream
        return self.mirror.follow(stream)

    def _forget_one_that_is_over(self) -> None:
        over = next((name for name, stream in self._living.items() if stream.over), None)
        if over is not None:
            del self._living[over]

    def remove(self, stream: Living) -> None:
        """It cannot be resumed here any more."""
        if self._living.get(stream.stream_id) is stream:
            del self._living[stream.stream_id]

    def living(self, stream_id: str, key: str) -> Living | None:
        """The stream, if it is this node's and this key's."""
        stream = self._living.get(stream_id)
        return stream if stream is not None and stream.key == key else None

    @asynccontextmanager
    async def one_at_a_time(self, stream_id: str) -> AsyncGenerator[None, None]:
        """Whoever resumes the same stream meanwhile waits."""
        lock = self._resuming.setdefault(stream_id, asyncio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._resuming.pop(stream_id, None)

    async def close(self) -> None:
        """Nothing runs here any more; what is mirrored can be resumed elsewhere."""
        streams = list(self._living.values())
        self._living.clear()
        for stream in streams:
            await stream.hand_over()
        await self.mirror.close()

    # -- streams of others ---------------------------------------------------------------------

    async def claim(self, stream_id: str, key: str) -> Inheritance | None:
        """Take a stream from whoever has the newest of it; None: nobody knows it, or not for this key."""
        nodes = [None, *self._others()]
        answers = await asyncio.gather(*(self._ask(node, stream_id, key) for node in nodes))
        found = [
            ((term, lives, items), node)
            for node, answer in zip(nodes, answers, strict=True)
            if answer is not None
            for lives, term, items in (answer,)
        ]
        for (term, lives, _), node in sorted(found, key=lambda each: each[0], reverse=True):
            try:
                inherited = await self._take(node, stream_id, key)
            except SllmdError as error:
                _log.warning("a stream could not be taken", node=node, lives=lives, reason=str(error))
                continue
            if inherited is not None and inherited.term > term:
                self.mirror.count("resumed")
                return inherited
        return None

    async def _ask(self, node: NodeId | None, stream_id: str, key: str) -> tuple[bool, int, int] | None:
        if node is None:
            return self._find(stream_id, key)
        seconds = self.settings.ask_timeout
        try:
            async with asyncio.timeout(seconds):
                answer = await self._call(node, FIND, (stream_id, key), seconds)
        except (SllmdError, TimeoutError) as error:
            _log.info("a node does not say whether it has a stream", node=node, reason=str(error))
            return None
        match answer:
            case (bool(lives), int(term), int(items)):
                return lives, term, items
        return None

    async def _take(self, node: NodeId | None, stream_id: str, key: str) -> Inheritance | None:
        if node is None:
            async with aclosing(self._pieces(stream_id, key)) as pieces:
                return await _gather(pieces)
        connection = await self._connect(node)
        async with connection.stream(TAKE, (stream_id, key), deadline_seconds=TAKE_SECONDS) as stream:
            return await _gather(stream)

    async def _call(self, node: NodeId, method: str, body: Any, deadline_seconds: float) -> Any:
        connection = await self._connect(node)
        return await connection.call(method, body, deadline_seconds=deadline_seconds)

    # -- what others ask -----------------------------------------------------------------------

    async def _on_find(self, body: Any, _caller: Caller) -> tuple[bool, int, int] | None:
        return self._find(*_asked(body))

    def _find(self, stream_id: str, key: str) -> tuple[bool, int, int] | None:
        living = self.living(stream_id, key)
        if living is not None:
            return True, living.term, sum(living.counts())
        copy = self.mirror.shelf.find(stream_id)
        if copy is None or Head.unpack(copy.head).key != key:
            return None
        return False, copy.term, sum(copy.counts)

    async def _on_take(self, body: Any, _caller: Caller) -> AsyncGenerator[Any, None]:
        stream_id, key = _asked(body)
        async with aclosing(self._pieces(stream_id, key)) as pieces:
            async for piece in pieces:
                yield piece

    async def _pieces(self, stream_id: str, key: str) -> AsyncGenerator[Any, None]:
        living = self.living(stream_id, key)
        if living is not None:
            self.remove(living)
            await living.hand_over()
            head, term = living.head, living.term + 1
            items = [list(living.items(choice, 0)) for choice in range(len(living.counts()))]
        else:
            copy = self.mirror.shelf.find(stream_id)
            if copy is None or Head.unpack(copy.head).key != key:
                return
            self.mirror.shelf.take(stream_id, now_seconds=time.monotonic())
            head, term, items = copy.head, copy.term, [list(each) for each in copy.items]
        yield head, term
        for choice, known in enumerate(items):
            for start in range(0, len(known), ITEMS_PER_PIECE):
                yield choice, tuple(known[start : start + ITEMS_PER_PIECE])


async def _gather(pieces: AsyncIterator[Any]) -> Inheritance | None:
    """The whole, from its pieces. Raises ProtocolError."""
    head: Head | None = None
    term = 0
    items: list[list[Item]] = []
    async for piece in pieces:
        match piece:
            case (bytes(packed), int(told)) if head is None:
                head, term = Head.unpack(packed), told
                items = [[] for _ in head.requests]
            case (int(choice), tuple(more)) if 0 <= choice < len(items):
                items[choice] += more
            case _:
                raise ProtocolError("a stream that cannot be understood")
    return None if head is None else Inheritance(head, term, tuple(map(tuple, items)))


def _asked(body: Any) -> tuple[str, str]:
    match body:
        case (str(stream_id), str(key)):
            return stream_id, key
    raise ProtocolError("a question for a stream that cannot be understood")


# -- as it travels ----------------------------------------------------------------------------------


def ledger_items(ledger: Ledger, start: int) -> list[Item]:
    """What a ledger knows of its output from index ``start`` on."""
    items = [item for event in ledger.events(start) for item in pack_happening(event)]
    if ledger.finish_reason is not None and ledger.tokens == 0 and start == 0:
        items += pack_happening(FinishedEvent(ledger.generation_id, ledger.finish_reason))
    return items


def known_items(known: Sequence[Known]) -> list[Item]:
    """What was known before this node took the stream."""
    return [item for event in known for item in pack_happening(event)]


def read_known(items: Sequence[Item]) -> tuple[Known, ...]:
    """The inverse. Raises ProtocolError."""
    transcript = Transcript(GenerationId(""))
    known: list[Known] = []
    for index, item in enumerate(items):
        event = transcript.read(item)
        if not isinstance(event, TokenEvent | FinishedEvent):
            raise ProtocolError("a stream with something in it that is no token")
        if isinstance(event, TokenEvent) and event.index != index:
            raise ProtocolError("a stream whose tokens are out of order")
        known.append(event)
    return tuple(known)


def _pack_request(request: GenerationRequest) -> tuple[Any, ...]:
    return (
        request.request_id,
        request.model,
        pack_ids(request.prompt_ids),
        tuple(getattr(request.sampling, field.name) for field in fields(Sampling)),
        request.stop,
        request.digest,
        request.keep_alive_seconds,
        request.skip_special_tokens,
        request.key,
    )


def _unpack_request(packed: Any) -> GenerationRequest:
    match packed:
        case (
            str(request_id),
            str(model),
            bytes(prompt),
            tuple(sampling),
            tuple(stop),
            str() | None as digest,
            float() | int() | None as keep_alive_seconds,
            bool(skip_special),
            str(key),
        ):
            pass
        case _:
            raise ProtocolError("a request that cannot be understood")
    try:
        return GenerationRequest(
            RequestId(request_id),
            model,
            tuple(unpack_ids(prompt)),
            Sampling(*sampling),
            stop,
            digest,
            keep_alive_seconds,
            skip_special,
            key,
        )
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"a request that cannot be understood: {error}") from error

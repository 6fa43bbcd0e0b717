"""Ledgers of this node's streams on another node each, before the client sees the tokens.

Owns: the copies that this node keeps for others, and the links over which it tells others of its own streams.
All streams with one keeper share a link, which has one call under way at a time: what comes meanwhile goes
together, so that a step of a batch is one message.
Invariants: no stream waits longer than the bound for its keeper, nor for a keeper that is late already; what
it has not been told is told with the next tokens; who owns a stream is the keeper's ``term``.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, Literal, Protocol, get_args

import structlog

from sllmd.core.errors import ProtocolError, SllmdError
from sllmd.core.ids import NodeId
from sllmd.migration.mirror import ITEM_BYTES, Item, News, Shelf, Told, keepers
from sllmd.roles.settings import MirrorSettings
from sllmd.roles.status import MirrorStatus
from sllmd.wire.rpc.methods import Caller, Methods

PUT = "mirror.put"
PUT_SECONDS = 2.0
"""For a keeper to answer; streams have gone on without it long before."""
ITEMS_PER_PUT = 4096
"""Of one choice: a stream that begins with a long past is told in several turns."""
NEWS_PER_PUT = 64

_log = structlog.get_logger(__name__)

Call = Callable[[NodeId, str, Any, float], Awaitable[Any]]
"""Node, method, body, deadline in seconds; raises SllmdError."""

Outcome = Literal["alone", "late", "refused", "resumed"]
"""What there is to count of mirrored streams::

    alone    there was nobody to tell of new tokens
    late     tokens went on before the keeper had answered
    refused  a keeper had no room for a stream
    resumed  this node took over a stream
"""


class Stream(Protocol):
    """What is mirrored."""

    stream_id: str
    term: int
    head: bytes
    over: bool
    """It ended, and everything that there is to tell is there."""

    def counts(self) -> Sequence[int]:
        """Items of each choice so far."""

    def items(self, choice: int, start: int) -> Sequence[Item]:
        """Those of one choice from ``start`` on."""

    def taken_away(self) -> None:
        """Another node has the stream now."""


class Mirror:
    """See the module."""

    def __init__(
        self, settings: MirrorSettings, call: Call, others: Callable[[], Collection[NodeId]]
    ) -> None:
        """``others``: the living nodes, without this one; the same object until they change."""
        self.shelf = Shelf(
            copies_max=settings.copies_max,
            bytes_max=int(settings.bytes_max),
            kept_seconds=settings.kept,
        )
        self.counts: Counter[Outcome] = Counter()
        self.observers: list[Callable[[Outcome], None]] = []
        """Told of each as it is counted."""
        self._settings = settings
        self._call = call
        self._others = others
        self._links: dict[NodeId, _Link] = {}

    def offer(self, methods: Methods) -> None:
        """Keep copies for other nodes."""

        async def put(body: Any, _caller: Caller) -> tuple[str, ...]:
            if not isinstance(body, tuple):
                raise ProtocolError("news of streams that cannot be understood")
            return tuple(self._put(each).value for each in body)

        methods.unary(PUT, put)

    def _put(self, packed: Any) -> Told:
        match packed:
            case (str(stream_id), int(term), bytes() | None as head, tuple(choices), bool(over)):
                news = News(stream_id, term, head, _choices(choices), over)
            case _:
                raise ProtocolError("news of a stream that cannot be understood")
        size_bytes = sum(_size_bytes(items) for _, _, items in news.choices)
        return self.shelf.put(news, item_bytes=size_bytes, now_seconds=time.monotonic())

    def count(self, outcome: Outcome) -> None:
        """It happened once more."""
        self.counts[outcome] += 1
        for observer in self.observers:
            observer(outcome)

    def status(self) -> MirrorStatus:
        """Copies kept here, and what became of this node's own streams."""
        counts = {outcome: self.counts[outcome] for outcome in get_args(Outcome)}
        return MirrorStatus(copies=len(self.shelf), copies_bytes=self.shelf.size_bytes, **counts)

    def follow(self, stream: Stream) -> Mirrored:
        """Begin to tell of ``stream``."""
        return Mirrored(self, stream)

    def keeper(self, stream_id: str, nodes: Collection[NodeId]) -> _Link | None:
        """Whom to tell of this stream; None: nobody is there."""
        if not nodes:
            return None
        node = keepers(stream_id, nodes)[0]
        if node not in self._links:
            self._links[node] = _Link(node, self)
        return self._links[node]

    @property
    def others(self) -> Collection[NodeId]:
        """Who could keep copies."""
        return self._others()

    async def send(self, node: NodeId, news: Sequence[Any]) -> list[Told]:
        """Tell ``node``. Raises SllmdError."""
        answer = await self._call(node, PUT, tuple(news), PUT_SECONDS)
        try:
            return [Told(each) for each in answer]
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"an answer of a keeper that cannot be understood: {error}") from error

    @property
    def wait_seconds(self) -> float:
        """The bound on what a stream waits for its keeper."""
        return self._settings.wait

    async def close(self) -> None:
        """Tell nobody any more."""
        for link in self._links.values():
            await link.close()


class Mirrored:
    """A stream, and what its keeper has of it."""

    def __init__(self, mirror: Mirror, stream: Stream) -> None:
        self._mirror = mirror
        self._stream = stream
        self._nodes: Collection[NodeId] | None = None
        self._link: _Link | None = None
        self._sent: list[int] | None = None
        """Items of each choice that the keeper has; None: not even the head."""
        self._over_sent = False
        self._refused = False

    async def tell(self) -> bool:
        """Tell of what is new; whether the keeper had it when this returned, which it does in time."""
        nodes = self._mirror.others
        if nodes is not self._nodes:
            self._nodes = nodes
            link = self._mirror.keeper(self._stream.stream_id, nodes)
            if link is not self._link:
                self._link, self._sent, self._refused = link, None, False
        if self._link is None:
            self._mirror.count("alone")
            return False
        if self._refused:
            return False
        told = await self._link.tell(self)
        if not told:
            self._mirror.count("late")
        return told

    def news(self) -> tuple[Any, ...] | None:
        """What the keeper has not; None: it has all."""
        stream, sent = self._stream, self._sent
        counts = stream.counts()
        before = sent if sent is not None else [0] * len(counts)
        if sent is not None and list(counts) == sent and stream.over == self._over_sent:
            return None
        choices = tuple(
            (choice, start, tuple(stream.items(choice, start)[:ITEMS_PER_PUT]))
            for choice, start in enumerate(before)
            if sent is None or start < counts[choice]
        )
        head = stream.head if sent is None else None
        return (stream.stream_id, stream.term, head, choices, stream.over)

    def told(self, news: tuple[Any, ...], told: Told) -> bool:
        """The keeper's answer; whether there is more to tell at once."""
        if told is Told.KEPT:
            sent = self._sent if self._sent is not None else [0] * len(news[3])
            for choice, start, items in news[3]:
                sent[choice] = start + len(items)
            self._sent, self._over_sent = sent, news[4]
            return self.news() is not None
        if told is Told.TAKEN:
            self._refused = True
            self._stream.taken_away()
        elif told is Told.FULL:
            self._refused = True
            self._mirror.count("refused")
        else:
            knew_nothing, self._sent = self._sent is None, None
            return not knew_nothing
        return False


class _Link:
    """To one keeper."""

    def __init__(self, node: NodeId, mirror: Mirror) -> None:
        self._node = node
        self._mirror = mirror
        self._dirty: dict[Mirrored, None] = {}
        self._next: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Done when the keeper has answered to what is dirty now: whether it has it."""
        self._telling: asyncio.Task[None] | None = None
        self._late = False
        """The keeper has not answered in time, and not since."""

    async def tell(self, mirrored: Mirrored) -> bool:
        """See ``Mirrored.tell``."""
        self._dirty[mirrored] = None
        answered = self._next
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell_all())
        if self._late:
            return False
        await asyncio.wait([answered], timeout=self._mirror.wait_seconds)
        self._late = not answered.done()
        return answered.done() and answered.result()

    async def _tell_all(self) -> None:
        while self._dirty:
            dirty, self._dirty = list(self._dirty), {}
            answered, self._next = self._next, asyncio.get_running_loop().create_future()
            kept = False
            try:
                for start in range(0, len(dirty), NEWS_PER_PUT):
                    await self._put(dirty[start : start + NEWS_PER_PUT])
                kept = True
            except SllmdError as error:
                _log.info("streams go on without a copy", keeper=self._node, reason=str(error))
            finally:
                self._late = not kept
                answered.set_result(kept)

    async def _put(self, dirty: Sequence[Mirrored]) -> None:
        """Tell, again where the answer asks for more."""
        again = {mirrored: news for mirrored in dirty if (news := mirrored.news()) is not None}
        while again:
            answers = await self._mirror.send(self._node, tuple(again.values()))
            again = {
                mirrored: more
                for (mirrored, news), told in zip(again.items(), answers, strict=True)
                if mirrored.told(news, told) and (more := mirrored.news()) is not None
            }

    async def close(self) -> None:
        """Give up what is under way."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait([self._telling])


def _choices(packed: Sequence[Any]) -> list[tuple[int, int, Sequence[Item]]]:
    for each in packed:
        match each:
            case (int(choice), int(start), tuple()) if 0 <= choice < CHOICES_MAX and start >= 0:
                continue
        raise ProtocolError("news of a choice that cannot be understood")
    return list(packed)


CHOICES_MAX = 4096
"""Of one stream: far more than any request has."""


def _size_bytes(items: Sequence[Item]) -> int:
    """Roughly what they take: log probabilities are what counts."""
    size_bytes = ITEM_BYTES * len(items)
    for item in items:
        if len(item) > 2 and isinstance(item[-1], tuple):
            size_bytes += ITEM_BYTES * (1 + len(item[-1][-1]))
    return size_bytes

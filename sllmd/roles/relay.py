"""Generations from node to node: token events over rpc, never text.

Owns: the method ``generate`` and the place that is another node. Invariants: the side that serves never
passes a request on, so there is one hop at most; a reader that leaves ends the generation over there, and
one that is slow stops its events at a window's worth, wherever they come from.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from sllmd.core.errors import DeadlineExceeded, PeerUnreachable, ProtocolError
from sllmd.core.ids import NodeId
from sllmd.roles.place import Place
from sllmd.roles.transcript import Transcript, pack_happening, pack_work, unpack_work
from sllmd.roles.work import Happening, Work
from sllmd.wire.rpc.connection import Connection
from sllmd.wire.rpc.methods import Caller, Methods
from sllmd.wire.rpc.outgoing import ReplyStream

METHOD = "generate"

Connect = Callable[[NodeId], Awaitable[Connection]]


def serve_generations(methods: Methods, here: Place) -> None:
    """Let other nodes run generations here."""

    async def generate(body: Any, _caller: Caller) -> AsyncGenerator[Any, None]:
        async with aclosing(here.run(unpack_work(body))) as happenings:
            async for happening in happenings:
                for item in pack_happening(happening):
                    yield item

    methods.stream(METHOD, generate)


class Relays:
    """The streams from other nodes that are under way here."""

    def __init__(self, connect: Connect, *, start_timeout_seconds: float) -> None:
        """``start_timeout_seconds``: for a node to find or start a replica."""
        self.connect = connect
        self.start_timeout_seconds = start_timeout_seconds
        self._streams: defaultdict[NodeId, set[ReplyStream]] = defaultdict(set)

    def there(self, node: NodeId) -> There:
        """The place that is ``node``."""
        return There(node, self)

    def open(self, node: NodeId, connection: Connection, work: Work) -> ReplyStream:
        """Begin a generation there. Raises PeerUnreachable, QueueFull, ProtocolError."""
        stream = connection.stream(METHOD, pack_work(work))
        self._streams[node].add(stream)
        return stream

    def closed(self, node: NodeId, stream: ReplyStream) -> None:
        """A generation there is over."""
        self._streams[node].discard(stream)
        if not self._streams[node]:
            del self._streams[node]

    def lost(self, node: NodeId) -> None:
        """The cluster believes that ``node`` is dead: what runs there has ended."""
        for stream in self._streams.get(node, ()):
            stream.finish(PeerUnreachable(f"node {node} is dead, as the cluster believes", in_doubt=True))

    @property
    def count(self) -> int:
        """Streams under way."""
        return sum(map(len, self._streams.values()))


class There:
    """Another node, as a place."""

    def __init__(self, node: NodeId, relays: Relays) -> None:
        self.node = node
        self._relays = relays

    async def run(self, work: Work) -> AsyncGenerator[Happening, None]:
        """See ``Place``."""
        relays = self._relays
        connection = await relays.connect(self.node)
        transcript = Transcript(work.state.generation_id)
        stream = relays.open(self.node, connection, work)
        try:
            async with stream:
                yield await self._first(stream, transcript)
                async for item in stream:
                    happening = transcript.read(item)
                    if happening is not None:
                        yield happening
        finally:
            relays.closed(self.node, stream)

    async def _first(self, stream: ReplyStream, transcript: Transcript) -> Happening:
        waited_seconds = self._relays.start_timeout_seconds
        try:
            async with asyncio.timeout(waited_seconds):
                happening = transcript.read(await anext(stream))
        except TimeoutError:
            raise DeadlineExceeded(f"node {self.node} found no replica within {waited_seconds:g} s") from None
        except StopAsyncIteration:
            happening = None
        if happening is None:
            raise ProtocolError(f"node {self.node} does not say where a generation runs")
        return happening

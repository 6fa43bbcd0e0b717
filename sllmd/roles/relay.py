"""Generations from node to node: token events over rpc, never text.

Owns: the method ``generate`` and the place that is another node. Invariants: the side that serves never
passes a request on, so there is one hop at most; a reader that leaves ends the generation over there, and
one that is slow stops its events at a window's worth, wherever they come from.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any
from uuid import uuid4

from sllmd.core.errors import DeadlineExceeded, PeerUnreachable, ProtocolError
from sllmd.core.ids import ModelName, NodeId
from sllmd.roles.berth import Berth
from sllmd.roles.berths import BERTH, COMMIT, WARM
from sllmd.roles.place import Place
from sllmd.roles.transcript import Transcript, pack_happening, pack_ids, pack_work, unpack_work
from sllmd.roles.work import Granted, Happening, Work
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
        self._streams: defaultdict[NodeId, dict[ReplyStream, ModelName]] = defaultdict(dict)

    def there(self, node: NodeId) -> There:
        """The place that is ``node``."""
        return There(node, self)

    def open(
        self, node: NodeId, connection: Connection, method: str, body: Any, model: ModelName
    ) -> ReplyStream:
        """Begin a stream from there, of a generation of ``model``.

        Raises PeerUnreachable, QueueFull, ProtocolError.
        """
        stream = connection.stream(method, body)
        self._streams[node][stream] = model
        return stream

    def closed(self, node: NodeId, stream: ReplyStream) -> None:
        """A generation there is over."""
        streams = self._streams.get(node)
        if streams is not None:
            streams.pop(stream, None)
            if not streams:
                del self._streams[node]

    def lost(self, node: NodeId) -> None:
        """The cluster believes that ``node`` is dead: what runs there has ended."""
        for stream in self._streams.get(node, ()):
            stream.finish(PeerUnreachable(f"node {node} is dead, as the cluster believes", in_doubt=True))

    async def granted(self, node: NodeId, stream: ReplyStream, transcript: Transcript) -> Granted:
        """What a stream begins with. Raises DeadlineExceeded, ProtocolError, and what the node raises."""
        waited_seconds = self.start_timeout_seconds
        try:
            async with asyncio.timeout(waited_seconds):
                happening = transcript.read(await anext(stream))
        except TimeoutError:
            raise DeadlineExceeded(f"node {node} found no replica within {waited_seconds:g} s") from None
        except StopAsyncIteration:
            happening = None
        if not isinstance(happening, Granted):
            raise ProtocolError(f"node {node} does not say where a generation runs")
        return happening

    def under_way(self, model: ModelName) -> Mapping[NodeId, int]:
        """Streams of a model from each node."""
        return Counter(
            node for node, streams in self._streams.items() for each in streams.values() if each == model
        )

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
        stream = relays.open(self.node, connection, METHOD, pack_work(work), work.model)
        try:
            async with stream:
                yield await relays.granted(self.node, stream, transcript)
                async with aclosing(read(stream, transcript)) as happenings:
                    async for happening in happenings:
                        yield happening
        finally:
            relays.closed(self.node, stream)

    async def berth(self, work: Work) -> Berth:
        """See ``Place``."""
        return await BerthThere.open(self.node, self._relays, work)


class BerthThere:
    """A berth on another node; see ``berths`` for the other end. Only tokens that are new travel."""

    def __init__(
        self, node: NodeId, relays: Relays, connection: Connection, stream: ReplyStream, work: Work, name: str
    ) -> None:
        """``name``: the berth's, among all of this node at that one."""
        self.granted: Granted
        self._node = node
        self._relays = relays
        self._connection = connection
        self._stream = stream
        self._transcript = Transcript(work.state.generation_id)
        self._name = name
        self._told = len(work.state.output_ids)

    @classmethod
    async def open(cls, node: NodeId, relays: Relays, work: Work) -> BerthThere:
        """Ask for one. Raises what ``Place.berth`` does."""
        connection = await relays.connect(node)
        name = uuid4().hex
        stream = relays.open(node, connection, BERTH, (name, pack_work(work)), work.model)
        berth = cls(node, relays, connection, stream, work, name)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(berth.aclose)
            berth.granted = await relays.granted(node, stream, berth._transcript)
            undo.pop_all()
        return berth

    async def warm(self, output_ids: Sequence[int]) -> None:
        """See ``Berth``."""
        order = self._order(output_ids)
        seconds = self._relays.start_timeout_seconds
        await self._connection.call(WARM, order, deadline_seconds=seconds)

    def commit(self, output_ids: Sequence[int]) -> AsyncGenerator[Happening, None]:
        """See ``Berth``."""
        sent = self._connection.note(COMMIT, self._order(output_ids))
        return self._run(sent=sent)

    def _order(self, output_ids: Sequence[int]) -> tuple[str, int, bytes]:
        told, self._told = self._told, len(output_ids)
        return self._name, told, pack_ids(output_ids[told:])

    async def _run(self, *, sent: bool) -> AsyncGenerator[Happening, None]:
        if not sent:
            raise PeerUnreachable(f"node {self._node} did not take the order to go on")
        async with aclosing(read(self._stream, self._transcript)) as happenings:
            async for happening in happenings:
                yield happening

    async def aclose(self) -> None:
        """See ``Berth``."""
        await self._stream.aclose()
        self._relays.closed(self._node, self._stream)


async def read(stream: ReplyStream, transcript: Transcript) -> AsyncGenerator[Happening, None]:
    """What the items of ``stream`` tell."""
    async for item in stream:
        happening = transcript.read(item)
        if happening is not None:
            yield happening

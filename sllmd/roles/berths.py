"""Berths that other nodes' routers hold on this one, over rpc.

::

    berth          (name, work)              stream: ``Granted``, and once committed the generation's events
    berth.warm     (name, start, token ids)  unary: nil when the cache is warm for all tokens so far
    berth.commit   (name, start, token ids)  note: the generation runs here from now on

The stream is the lease: when its reader leaves, or the connection breaks, the replica is let go. Invariants:
tokens that do not continue what this node has been told change nothing; a commit is not answered, because the
events that follow are the answer: or the stream's error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

from sllmd.core.errors import NotHere, ProtocolError
from sllmd.core.ids import NodeId
from sllmd.roles.berth import Berth
from sllmd.roles.place import Place
from sllmd.roles.transcript import pack_happening, unpack_ids, unpack_work
from sllmd.roles.work import Work
from sllmd.wire.rpc.methods import Caller, Methods

BERTH, WARM, COMMIT = "berth", "berth.warm", "berth.commit"


class _Lent:
    """A berth, and what its router has told of the generation."""

    def __init__(self, work: Work, berth: Berth) -> None:
        self.berth = berth
        self.output_ids = list(work.state.output_ids)
        self.committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def extend(self, start: int, token_ids: bytes) -> None:
        """Take what is new. Raises ProtocolError when it is not what comes next."""
        if start != len(self.output_ids):
            raise ProtocolError(f"tokens from {start} on, after {len(self.output_ids)} of them")
        try:
            self.output_ids += unpack_ids(token_ids)
        except ValueError as error:
            raise ProtocolError(f"tokens that cannot be understood: {error}") from error


class Berths:
    """See the module."""

    def __init__(self, here: Place) -> None:
        self._here = here
        self._lent: dict[tuple[NodeId, str], _Lent] = {}

    @property
    def count(self) -> int:
        """Berths that are held now."""
        return len(self._lent)

    def offer(self, methods: Methods) -> None:
        """Let other nodes have berths here."""
        methods.stream(BERTH, self._hold)
        methods.unary(WARM, self._warm)
        methods.note(COMMIT, self._commit)

    async def _hold(self, body: Any, caller: Caller) -> AsyncGenerator[Any, None]:
        match body:
            case (str(name), packed):
                work = unpack_work(packed)
            case _:
                raise ProtocolError("a berth that cannot be understood")
        berth = await self._here.berth(work)
        try:
            with self._listed((caller.node, name), _Lent(work, berth)) as lent:
                for item in pack_happening(berth.granted):
                    yield item
                await lent.committed
            async with aclosing(berth.commit(lent.output_ids)) as happenings:
                async for happening in happenings:
                    for item in pack_happening(happening):
                        yield item
        finally:
            await berth.aclose()

    @contextmanager
    def _listed(self, key: tuple[NodeId, str], lent: _Lent) -> Iterator[_Lent]:
        """Orders for it are heard meanwhile."""
        self._lent[key] = lent
        try:
            yield lent
        finally:
            del self._lent[key]

    async def _warm(self, body: Any, caller: Caller) -> None:
        lent, start, token_ids = self._find(body, caller)
        lent.extend(start, token_ids)
        await lent.berth.warm(lent.output_ids)

    def _commit(self, body: Any, caller: Caller) -> None:
        lent, start, token_ids = self._find(body, caller)
        if lent.committed.done():
            return
        try:
            lent.extend(start, token_ids)
        except ProtocolError as error:
            lent.committed.set_exception(error)
        else:
            lent.committed.set_result(None)

    def _find(self, body: Any, caller: Caller) -> tuple[_Lent, int, bytes]:
        match body:
            case (str(name), int(start), bytes(token_ids)):
                lent = self._lent.get((caller.node, name))
            case _:
                raise ProtocolError("an order to a berth that cannot be understood")
        if lent is None:
            raise NotHere("this berth was let go")
        return lent, start, token_ids

"""Where a generation runs: on this node's agent, or on another node that is reached over rpc.

Owns: what a place promises, and the place that is this node. A place runs token ids and knows nothing of
text. ``relay`` has the other kind.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Protocol

from sllmd.core.ids import Digest, ModelName, NodeId
from sllmd.roles.agent import Agent
from sllmd.roles.berth import Berth, BerthHere
from sllmd.roles.residence import Grant
from sllmd.roles.work import Granted, Happening, Work
from sllmd.store.checkpoint import Checkpoint


class Place(Protocol):
    """Somewhere a generation can run."""

    node: NodeId

    def run(self, work: Work) -> AsyncGenerator[Happening, None]:
        """``Granted``, then the generation's events in order; ``aclose`` cancels it.

        Raises what keeps the model from starting, WorkerLost, NotHere, and PeerError.
        """

    async def berth(self, work: Work) -> Berth:
        """A replica held for the generation, which runs elsewhere as yet; close it. Raises the same."""


Obtain = Callable[[ModelName, Digest], Awaitable[Checkpoint]]


class Here:
    """This node's own replicas."""

    def __init__(self, agent: Agent, obtain: Obtain, node: NodeId) -> None:
        """``obtain``: the checkpoint of a model as this node can load it; raises NotHere."""
        self.node = node
        self._agent = agent
        self._obtain = obtain

    async def run(self, work: Work) -> AsyncGenerator[Happening, None]:
        """See ``Place``."""
        began_seconds = time.monotonic()
        checkpoint = await self._obtain(work.model, work.digest)
        estimate_seconds = self._agent.startup_estimate_seconds(checkpoint)
        async with self._agent.hold(
            checkpoint, keep_alive_seconds=work.keep_alive_seconds, key=work.key
        ) as grant:
            yield _granted(self.node, grant, began_seconds, estimate_seconds)
            async with aclosing(grant.replica.generate(work.state)) as events:
                async for event in events:
                    yield event

    async def berth(self, work: Work) -> Berth:
        """See ``Place``."""
        began_seconds = time.monotonic()
        checkpoint = await self._obtain(work.model, work.digest)
        estimate_seconds = self._agent.startup_estimate_seconds(checkpoint)
        async with AsyncExitStack() as hold:
            held = self._agent.hold(checkpoint, keep_alive_seconds=work.keep_alive_seconds, key=work.key)
            grant = await hold.enter_async_context(held)
            granted = _granted(self.node, grant, began_seconds, estimate_seconds)
            return BerthHere(work.state, grant, granted, hold.pop_all())


def _granted(node: NodeId, grant: Grant, began_seconds: float, estimate_seconds: float) -> Granted:
    if not grant.cold:
        return Granted(node, cold=False, tier="device")
    residence = grant.residence
    load_seconds = residence.resident_since_seconds - max(residence.started_seconds, began_seconds)
    return Granted(
        node,
        cold=True,
        tier=residence.tier,
        load_ms=load_seconds * 1000,
        estimate_ms=estimate_seconds * 1000,
        stages={name: seconds * 1000 for name, seconds in residence.stages_seconds.items()},
    )

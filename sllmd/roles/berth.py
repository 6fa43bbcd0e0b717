"""A replica held for a generation that is about to come: what a target of a move is, on this node.

Owns: the promise, and the berth that is a replica of this node's. ``berths`` has the one that is on another.
A berth takes one row's place on its replica, from the start until the generation has run there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Protocol

from sllmd.engine.protocol import GenerationState
from sllmd.roles.residence import Grant
from sllmd.roles.work import Granted, Happening


class Berth(Protocol):
    """See the module. ``aclose`` lets the replica go, in every state, and cancels what runs on it."""

    granted: Granted

    async def warm(self, output_ids: Sequence[int]) -> None:
        """Compute keys and values for the prompt and these tokens; returns when they are there.

        Raises PeerError, WorkerLost, and InvalidRequest when the engine refuses them.
        """

    def commit(self, output_ids: Sequence[int]) -> AsyncGenerator[Happening, None]:
        """Run it from there on: the order is on its way when this returns. The generation's events."""

    async def aclose(self) -> None:
        """Idempotent."""


class BerthHere:
    """On a replica of this node."""

    def __init__(self, state: GenerationState, grant: Grant, granted: Granted, hold: AsyncExitStack) -> None:
        """``hold``: what keeps the replica; it goes with this berth."""
        self.granted = granted
        self._state = state
        self._replica = grant.replica
        self._hold = hold

    async def warm(self, output_ids: Sequence[int]) -> None:
        """See ``Berth``."""
        plain = replace(self._state.sampling, prompt_logprobs=None)
        await self._replica.prefill(replace(self._state, sampling=plain, output_ids=list(output_ids)))

    def commit(self, output_ids: Sequence[int]) -> AsyncGenerator[Happening, None]:
        """See ``Berth``."""
        return self._replica.generate(replace(self._state, output_ids=list(output_ids)))

    async def aclose(self) -> None:
        """See ``Berth``. Close the generator of ``commit`` before."""
        await self._hold.aclose()

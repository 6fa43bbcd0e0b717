"""A model that was removed or replaced leaves this node's memory: nobody can ask for it any more.

Owns: the memory of what names have stood for since this daemon started, and the loop that looks.
Invariants: only what a name stood for goes, so that a node that hears late of a new model keeps it; what runs
is finished first; bytes that another name still stands for stay in DRAM.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from sllmd.core.errors import SllmdError
from sllmd.core.ids import Digest, ModelName
from sllmd.loader.tier import DramTier
from sllmd.roles.agent import Agent
from sllmd.roles.library import Library

LOOK_SECONDS = 1.0
"""How long memory may go on being held for nobody."""

_log = structlog.get_logger(__name__)

_Meaning = tuple[ModelName, Digest]


class Clearing:
    """See the module."""

    def __init__(self, library: Library, agent: Agent, tier: DramTier) -> None:
        self._library = library
        self._agent = agent
        self._tier = tier
        self._stood: frozenset[_Meaning] = frozenset()
        """What names stand for, and what is still in memory of what they stood for."""
        agent.observers.append(lambda _residence, _change, _reason: self._note())
        self._going: dict[_Meaning, asyncio.Task[tuple[int, int]]] = {}

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                try:
                    self.look()
                except SllmdError as error:
                    _log.debug("cannot tell which models there are", reason=str(error))
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            for task in self._going.values():
                task.cancel()

    def _note(self) -> None:
        """A replica's life goes on: what names stand for now may be replaced before the next look."""
        with suppress(SllmdError):
            self._stood |= self._standing()

    def _standing(self) -> frozenset[_Meaning]:
        return frozenset((model.name, model.digest) for model in self._library.models())

    def look(self) -> None:
        """Let go what no name stands for any more. Raises StoreError."""
        standing = self._standing()
        digests = frozenset(digest for _, digest in standing)
        gone = self._stood - standing
        self._going = {key: task for key, task in self._going.items() if not task.done()}
        held = {copy.digest for copy in self._tier.stats().copies}
        for residence in self._agent.residences():
            key = residence.need.key
            if key in gone and key not in self._going:
                _log.info("a model that no name stands for any more goes", model=key[0], digest=key[1][:12])
                leaving = self._agent.unload(residence.checkpoint, keep_dram=key[1] in digests)
                self._going[key] = asyncio.get_running_loop().create_task(leaving)
        for digest in {digest for _, digest in gone if digest in held - digests}:
            self._tier.evict(digest)  # nothing, while a replica or a load has it
        held |= {residence.need.digest for residence in self._agent.residences()}
        self._stood = standing | {key for key in gone if key[1] in held}

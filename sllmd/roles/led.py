"""Who leads and is well, as this node sees it, and since when nobody does.

Owns: that knowledge, and those who wait for a change of it. A leader counts only while gossip believes it
well: a node without a vote keeps the name of the last one. For a while after one went, there will be another;
but not where most voters went: nobody waits then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from sllmd.cluster.control import Leadership
from sllmd.core.errors import ControlUnavailable
from sllmd.core.ids import NodeId


@dataclass(frozen=True, slots=True)
class Leads:
    """Somebody who leads."""

    epoch: int
    node: NodeId


class Led:
    """See the module."""

    def __init__(self, patience_seconds: float) -> None:
        """``patience_seconds``: how long the next leader is waited for."""
        self._patience_seconds = patience_seconds
        self._may_be_another = True
        self.who: Leads | None = None
        """None: nobody, or somebody who is not well."""
        self._changed = asyncio.Event()
        self._since_seconds = _now()
        """When it came to that."""

    @property
    def patience_seconds(self) -> float:
        """How long the next leader is worth waiting for."""
        return self._patience_seconds if self._may_be_another else 0.0

    def look(
        self, leadership: Leadership, alive: Collection[NodeId], voters: Collection[NodeId] = ()
    ) -> None:
        """It is so now. No ``voters``: others elect."""
        leader = leadership.leader
        who = None if leader is None or leader not in alive else Leads(leadership.epoch, leader)
        may_be_another = not voters or 2 * sum(voter in alive for voter in voters) > len(voters)
        if (who, may_be_another) == (self.who, self._may_be_another):
            return
        if who != self.who:
            self._since_seconds = _now()
        self.who, self._may_be_another = who, may_be_another
        self._changed.set()
        self._changed = asyncio.Event()

    async def somebody(self) -> Leads:
        """Who leads, as soon as there is one. Raises ControlUnavailable when nobody has for long."""
        while self.who is None:
            await self._change(self._since_seconds + self.patience_seconds - _now())
        return self.who

    async def _change(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            raise ControlUnavailable("nobody leads", retry_after_seconds=1.0) from None

    async def until_not(self, who: Leads) -> None:
        """Returns when ``who`` does not lead any more, or is not well."""
        while self.who == who:
            await self._changed.wait()


def _now() -> float:
    return asyncio.get_running_loop().time()

"""Who waits for a replica of this node, and whose turn it is.

Owns: the tickets, and the turns that keys take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from sllmd.core.errors import SllmdError
from sllmd.core.ids import ModelName
from sllmd.roles.admission import Need
from sllmd.roles.residence import Grant
from sllmd.scheduler.turns import Turns
from sllmd.store.checkpoint import Checkpoint


@dataclass(slots=True, eq=False)
class Ticket:
    """Somebody who waits."""

    checkpoint: Checkpoint
    need: Need
    granted: asyncio.Future[Grant]
    cold: bool = False
    is_request: bool = True
    """False: nothing will run on it, it only has the replica started."""
    key: str = ""
    priority: int = 0

    def was_granted(self) -> bool:
        """Whether it has its replica."""
        done = self.granted.done() and not self.granted.cancelled()
        return done and self.granted.exception() is None

    def refuse(self, error: SllmdError) -> None:
        """It gets ``error``, unless it was answered before."""
        if not self.granted.done():
            self.granted.set_exception(error)


class Tickets:
    """See the module."""

    def __init__(self) -> None:
        self._turns = Turns()
        self._tickets: list[Ticket] = []

    def __iter__(self) -> Iterator[Ticket]:
        """As they came."""
        return iter(tuple(self._tickets))

    def add(self, ticket: Ticket) -> None:
        """It waits from now on."""
        self._tickets.append(ticket)

    def remove(self, ticket: Ticket) -> None:
        """It waits no more."""
        self._tickets.remove(ticket)

    def requests(self, model: ModelName | None = None) -> int:
        """How many requests wait for this model, or for any."""
        return sum(model in (None, ticket.need.model) and ticket.is_request for ticket in self._tickets)

    def want(self, model: ModelName) -> bool:
        """Whether anybody has this model started."""
        return any(ticket.need.model == model for ticket in self._tickets)

    def in_turn(self) -> list[Ticket]:
        """Those without an answer, as they should be served."""
        return self._turns.order(each for each in self._tickets if not each.granted.done())

    def served(self, ticket: Ticket) -> None:
        """It had its turn."""
        self._turns.served(ticket)

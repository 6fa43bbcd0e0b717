"""What the rest of the daemon sees of agreement, whoever keeps it: this cluster's raft, or an etcd.

Two implementations stand behind ``ControlStore``: ``member`` and ``etcd``. Both feed the same commands, in
one order, to the same ``catalogue``; one suite of tests holds both to the same promises.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

from sllmd.cluster.catalogue import Catalogue
from sllmd.cluster.catalogue.commands import Body
from sllmd.cluster.catalogue.results import Result
from sllmd.core.ids import NodeId


@dataclass(frozen=True, slots=True)
class View:
    """The catalogue as this node knows it. It may be old, it is never wrong: it was true once."""

    catalogue: Catalogue
    position: int
    """Of the newest command in it, in the order that all nodes share."""
    age_seconds: float
    """Since this node last heard from whoever decides; infinite before the first time."""


@dataclass(frozen=True, slots=True)
class Leadership:
    """Who leads, as this node sees it. ``epoch`` grows with every change of leader and never falls."""

    epoch: int
    leader: NodeId | None
    is_me: bool
    """True only once the epoch stands in the catalogue (``EpochBegin``): a leader gives no orders before."""


_Value = TypeVar("_Value")


class Latest(Generic[_Value]):
    """An async iterator over a value's changes: a slow reader gets the newest and misses those between."""

    def __init__(self) -> None:
        self._value: _Value | None = None
        self._event = asyncio.Event()

    def put(self, value: _Value) -> None:
        """The value is this now."""
        self._value = value
        self._event.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Value:
        await self._event.wait()
        self._event.clear()
        assert self._value is not None
        return self._value


class ControlStore(Protocol):
    """Agreement, as the daemon uses it. Belongs to the event loop that it was started on."""

    def view(self) -> View:
        """What this node knows now, without asking anybody."""

    def leadership(self) -> Leadership:
        """Who leads, as far as this node knows."""

    def views(self) -> Latest[View]:
        """Every change of the catalogue from now on; who drops the iterator is forgotten."""

    def leaderships(self) -> Latest[Leadership]:
        """Every change of the leadership from now on."""

    async def read(self) -> Catalogue:
        """The catalogue, no older than this call (linearizable). Raises ControlUnavailable."""

    async def propose(self, body: Body, *, epoch: int | None = None) -> Result:
        """Have a command agreed on, and its result; carried out once however often it has to be sent.

        ``epoch``: an order of the leader of that epoch, refused in any other. When this returns, ``view``
        on this node shows the outcome. Raises ControlUnavailable (it was not and will not be carried out)
        or OutcomeUnknown (it may have been, or may yet be).
        """

    async def hand_over(self) -> bool:
        """Give the leadership to another node, if this one has it and there is one; whether it went."""

    async def close(self) -> None:
        """Stop taking part."""

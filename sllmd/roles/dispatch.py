"""From a generation to a place that runs it, and on to the next place when one cannot.

Invariants: a generation is tried again elsewhere only before its first token, and only for a reason that is
the place's, not the caller's; tries are bounded; nothing here needs a leader.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Protocol

import structlog

from sllmd.core.errors import CallerError, NotHere, PeerError, SllmdError, StartupTimeout, WorkerLost
from sllmd.engine.protocol import TokenEvent
from sllmd.roles.place import Place
from sllmd.roles.work import Happening, Work

_log = structlog.get_logger(__name__)


class Places(Protocol):
    """Who knows where a generation may run."""

    def choose(self, work: Work) -> Iterable[Place]:
        """The places to ask, the best first; few, and one at least."""

    def failed(self, place: Place, work: Work, error: SllmdError) -> None:
        """It did not run there, because of ``error``."""


class OnlyHere:
    """A node without a cluster."""

    def __init__(self, here: Place) -> None:
        self._here = (here,)

    def choose(self, work: Work) -> Iterable[Place]:  # noqa: ARG002
        """This node."""
        return self._here

    def failed(self, place: Place, work: Work, error: SllmdError) -> None:
        """There is nothing to learn from it."""


async def run(work: Work, places: Places) -> AsyncGenerator[Happening, None]:
    """``Granted`` once per place tried, then the events of the one that runs it.

    Raises what the first place gave as its reason (a node's being away is none, if another gave one), and
    WorkerLost when the place is lost after the first token.
    """
    reason: SllmdError | None = None
    for place in places.choose(work):
        began = False
        try:
            async with aclosing(place.run(work)) as happenings:
                async for happening in happenings:
                    began = began or isinstance(happening, TokenEvent)
                    yield happening
                return
        except SllmdError as error:
            if began and isinstance(error, PeerError):
                raise WorkerLost(f"node {place.node}, where the generation ran, is gone: {error}") from error
            if began or isinstance(error, CallerError | StartupTimeout):
                raise
            places.failed(place, work, error)
            _log.info("generation not run there", node=place.node, model=work.model, reason=str(error))
            if reason is None or isinstance(reason, PeerError):
                reason = error
    raise reason or NotHere(f"no node can run `{work.model}` now")

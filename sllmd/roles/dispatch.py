"""Who knows where a generation may run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sllmd.core.errors import RecordNotFound, SllmdError
from sllmd.core.ids import NodeId
from sllmd.roles.place import Place
from sllmd.roles.work import Work


class Places(Protocol):
    """Who knows where a generation may run."""

    def choose(self, work: Work) -> Iterable[Place]:
        """The places to ask, the best first; few, and one at least."""

    def elsewhere(self, work: Work, node: NodeId) -> Place | None:
        """The best place to move what runs on ``node`` to, if there is one."""

    def at(self, node: NodeId) -> Place:
        """The place that is ``node``. Raises RecordNotFound."""

    def failed(self, place: Place, work: Work, error: SllmdError) -> None:
        """It did not run there, because of ``error``."""


class OnlyHere:
    """A node without a cluster."""

    def __init__(self, here: Place) -> None:
        self._here = here

    def choose(self, work: Work) -> Iterable[Place]:  # noqa: ARG002
        """This node."""
        return (self._here,)

    def elsewhere(self, work: Work, node: NodeId) -> Place | None:
        """There is none."""

    def at(self, node: NodeId) -> Place:
        """This node, if that is what ``node`` says."""
        if node != self._here.node:
            raise RecordNotFound(f"there is no node `{node}`: this one is alone")
        return self._here

    def failed(self, place: Place, work: Work, error: SllmdError) -> None:
        """There is nothing to learn from it."""

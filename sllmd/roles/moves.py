"""Orders to move generations, carried out by the routers that carry them, on every node.

Owns: the method ``move``. A router moves what it carries and nothing else; whoever orders asks all of them,
and needs no leader for it. Invariants: an order names what it means, and what does not fit it stays; how each
move went is told to whoever ordered it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from sllmd.core.errors import ProtocolError, SllmdError
from sllmd.core.ids import NodeId
from sllmd.roles.router import Generation, Router
from sllmd.roles.status import MovedStatus, MoveStatus
from sllmd.wire.rpc.methods import Caller, Methods

METHOD = "move"

_log = structlog.get_logger(__name__)


class Others(Protocol):
    """The other nodes, as ``ClusterNode`` knows them."""

    async def call(
        self, node: NodeId, method: str, body: Any, *, deadline_seconds: float | None = None
    ) -> Any:
        """Ask one of them. Raises PeerError, and what it raises."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which generations: those that fit all that is given."""

    request_id: str | None = None
    model: str | None = None
    """A name of the catalogue."""
    source: NodeId | None = None
    """The node that runs them."""

    def fits(self, generation: Generation) -> bool:
        """Whether this generation is meant; one that runs nowhere yet is not."""
        carriage = generation.carriage
        if carriage is None or carriage.place is None or carriage.ledger.over:
            return False
        return (
            self.request_id in (None, generation.request.request_id, generation.generation_id)
            and self.model in (None, carriage.work.model)
            and self.source in (None, carriage.place.node)
        )


class Moves:
    """See the module."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._others: Others | None = None
        self._alive: Callable[[], Collection[NodeId]] = tuple

    def join(self, methods: Methods, others: Others, alive: Callable[[], Collection[NodeId]]) -> None:
        """Hear the orders of other nodes, and give them some; ``alive``: those that can be asked."""
        methods.unary(METHOD, self._hear)
        self._others, self._alive = others, alive

    async def here(self, selection: Selection, target: NodeId | None, reason: str) -> list[MovedStatus]:
        """Move what this node's router carries; None: each to the best other place for it.

        Returns when every one has moved or has not, and how that went.
        """
        chosen = [each for each in self._router.running() if selection.fits(each)]
        return list(await asyncio.gather(*(self._move(each, target, reason) for each in chosen)))

    async def everywhere(self, selection: Selection, target: NodeId | None, reason: str) -> list[MovedStatus]:
        """The same on every node; one that does not answer is left out, and said so in the log."""
        asking = [self._ask(node, selection, target, reason) for node in self._alive()]
        found = await asyncio.gather(self.here(selection, target, reason), *asking)
        return [moved for each in found for moved in each]

    async def _move(self, generation: Generation, target: NodeId | None, reason: str) -> MovedStatus:
        carriage, router = generation.carriage, self._router
        assert carriage is not None, "it was chosen by where it runs"
        source = carriage.place.node if carriage.place is not None else ""
        try:
            place = None if target is None else router.places.at(target)
            move = (await router.mover.move(carriage, place, reason)).status()
        except SllmdError as error:
            move = MoveStatus(
                kind="move",
                reason=reason,
                source=source,
                target=target or "",
                result="failed",
                outcome=str(error),
            )
        return MovedStatus(
            request_id=generation.request.request_id,
            generation_id=generation.generation_id,
            model=carriage.work.model,
            move=move,
        )

    async def _ask(
        self, node: NodeId, selection: Selection, target: NodeId | None, reason: str
    ) -> list[MovedStatus]:
        assert self._others is not None, "there are others only after join()"
        order = (selection.request_id, selection.model, selection.source, target, reason)
        seconds = self._router.migration.move_timeout
        try:
            answer = await self._others.call(node, METHOD, order, deadline_seconds=seconds)
        except SllmdError as error:
            _log.warning("a node was not asked to move what it carries", node=node, reason=str(error))
            return []
        return _unpack(answer)

    async def _hear(self, body: Any, _caller: Caller) -> list[dict[str, Any]]:
        match body:
            case (
                str() | None as request_id,
                str() | None as model,
                str() | None as source,
                str() | None as target,
                str(reason),
            ):
                selection = Selection(request_id, model, None if source is None else NodeId(source))
            case _:
                raise ProtocolError("an order to move that cannot be understood")
        moved = await self.here(selection, None if target is None else NodeId(target), reason)
        return [each.model_dump() for each in moved]


def _unpack(answer: Iterable[Any]) -> list[MovedStatus]:
    """Raises ProtocolError."""
    try:
        return [MovedStatus.model_validate(each) for each in answer]
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"moves that cannot be understood: {error}") from error

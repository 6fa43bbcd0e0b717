"""What all nodes of the cluster have loaded, and what those that carried a request remember of it.

Owns: the methods ``survey.loaded`` and ``survey.request``. Every node is asked itself, all at once, without a
leader; who does not answer in time is named and not waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any

from pydantic import ValidationError

from sllmd.core.errors import ProtocolError, SllmdError
from sllmd.core.ids import NodeId
from sllmd.roles.moves import Others
from sllmd.roles.status import LoadedStatus, RequestStatus
from sllmd.wire.rpc.methods import Caller, Methods

LOADED, REQUEST = "survey.loaded", "survey.request"
ASK_SECONDS = 2.0
"""For one node's answer: whoever looks does not wait for a node that hangs."""


class Survey:
    """See the module. Before ``join``, this node is all there is."""

    def __init__(
        self, loaded: Callable[[], LoadedStatus], requests: Callable[[], Sequence[RequestStatus]]
    ) -> None:
        """What this node says of itself."""
        self._loaded = loaded
        self._requests = requests
        self._others: Others | None = None
        self._alive: Callable[[], Collection[NodeId]] = tuple

    def join(self, methods: Methods, others: Others, alive: Callable[[], Collection[NodeId]]) -> None:
        """Answer other nodes, and ask them; ``alive``: those that can be asked."""
        methods.unary(LOADED, self._tell_loaded)
        methods.unary(REQUEST, self._tell_request)
        self._others, self._alive = others, alive

    async def loaded(self) -> tuple[list[LoadedStatus], dict[NodeId, str]]:
        """What each node has loaded, this one first; and who gave no answer, and why."""
        found, silent = [self._loaded()], {}
        for node, answer in await self._ask(LOADED, None):
            try:
                found.append(LoadedStatus.model_validate(_answered(answer)))
            except (SllmdError, ValidationError) as error:
                silent[node] = str(error)
        return found, silent

    async def request(self, request_id: str) -> list[RequestStatus]:
        """The generations of a request: this node's, or else another's. A node that is silent has none."""
        mine = self._generations(request_id)
        if mine:
            return mine
        for _, answer in await self._ask(REQUEST, request_id):
            try:
                found = [RequestStatus.model_validate(each) for each in _answered(answer)]
            except (SllmdError, ValidationError):
                continue
            if found:
                return found
        return []

    def _generations(self, request_id: str) -> list[RequestStatus]:
        return [each for each in self._requests() if each.request_id == request_id]

    async def _ask(self, method: str, body: Any) -> list[tuple[NodeId, Any]]:
        """All others; each with its answer, or with what came of asking."""
        nodes = list(self._alive())
        others = self._others
        if others is None:
            return []
        asking = (others.call(node, method, body, deadline_seconds=ASK_SECONDS) for node in nodes)
        return list(zip(nodes, await asyncio.gather(*asking, return_exceptions=True), strict=True))

    async def _tell_loaded(self, _body: Any, _caller: Caller) -> dict[str, Any]:
        return self._loaded().model_dump()

    async def _tell_request(self, body: Any, _caller: Caller) -> list[dict[str, Any]]:
        if not isinstance(body, str):
            raise ProtocolError("a request's id that cannot be understood")
        return [each.model_dump() for each in self._generations(body)]


def _answered(answer: Any) -> Any:
    """Raises what came of asking."""
    if isinstance(answer, BaseException):
        raise answer
    return answer

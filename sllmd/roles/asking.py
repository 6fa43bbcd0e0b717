"""Asking whoever leads, from any node: where a model should run, what a plan would be, to let a model go.

Nobody leads, or it does not answer: ControlUnavailable, and whoever asked goes on without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sllmd.cluster.node import ClusterNode
from sllmd.core.errors import ControlUnavailable, OutcomeUnknown, PeerError
from sllmd.core.ids import ModelName, NodeId
from sllmd.roles.decided import CODEC, Decided, Question, unpack_decided
from sllmd.roles.leader import PLACE, PLAN, RETIRE, RETIRE_SECONDS, Leader

ASK_SECONDS = 3.0
"""For a plan, which takes milliseconds."""


class Asking:
    """See the module."""

    def __init__(
        self, cluster: ClusterNode, leader: Leader, has_leader: Callable[[], bool], *, wait_seconds: float
    ) -> None:
        """``wait_seconds``: how long a request may wait for a place."""
        self._cluster = cluster
        self._leader = leader
        self._has_leader = has_leader
        self._wait_seconds = wait_seconds

    async def place(self, question: Question) -> Decided:
        """Where it shall run. Raises ControlUnavailable."""
        try:
            if self._whom() == self._cluster.identity.node:
                async with asyncio.timeout(self._wait_seconds):
                    return await self._leader.place(question)
            return unpack_decided(await self._call(PLACE, CODEC.pack(question), self._wait_seconds))
        except (PeerError, OutcomeUnknown, TimeoutError) as error:
            raise _unavailable(error) from error

    async def plan(self, model: ModelName) -> Decided:
        """Where it would start now, and every way that was compared. Raises ControlUnavailable."""
        try:
            if self._whom() == self._cluster.identity.node:
                return self._leader.plan(model)
            return unpack_decided(await self._call(PLAN, model, ASK_SECONDS))
        except PeerError as error:
            raise _unavailable(error) from error

    async def retire(self, model: ModelName) -> None:
        """Have all replicas of a model go. Raises ControlUnavailable."""
        try:
            if self._whom() == self._cluster.identity.node:
                await self._leader.retire(model)
            else:
                await self._call(RETIRE, model, RETIRE_SECONDS + ASK_SECONDS)
        except (PeerError, OutcomeUnknown) as error:
            raise _unavailable(error) from error

    def _whom(self) -> NodeId:
        leader = self._cluster.control.leadership().leader
        if leader is None or not self._has_leader():
            raise ControlUnavailable("nobody leads", retry_after_seconds=1.0)
        return leader

    async def _call(self, method: str, body: Any, deadline_seconds: float) -> Any:
        return await self._cluster.call(self._whom(), method, body, deadline_seconds=deadline_seconds)


def _unavailable(error: Exception) -> ControlUnavailable:
    return ControlUnavailable(f"the leader gives no answer: {error}", retry_after_seconds=1.0)

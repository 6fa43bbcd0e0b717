"""Asking whoever leads, from any node: where a model should run, what a plan would be, to let a model go.

A request's question outlives the leader that it was put to: when that one goes, dies or hangs, the next one
is asked. It knows from the catalogue and from the nodes what was begun, so nothing is started twice.
Nobody leads for long, or nobody answers: ControlUnavailable, and whoever asked goes on without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from sllmd.cluster.node import ClusterNode
from sllmd.core.errors import ControlUnavailable, OutcomeUnknown, PeerError
from sllmd.core.ids import ModelName, NodeId
from sllmd.roles.decided import CODEC, Decided, Question, unpack_decided
from sllmd.roles.leader import PLACE, PLAN, RETIRE, Leader
from sllmd.roles.led import Leads, Led
from sllmd.roles.upkeep import RETIRE_SECONDS

ASK_SECONDS = 3.0
"""For a plan, which takes milliseconds."""
RETRY_SECONDS = 0.1
"""Before a leader that lives and has no answer is asked again: it may have begun to lead a moment ago."""

_Unanswered = (PeerError, OutcomeUnknown, ControlUnavailable)


class Asking:
    """See the module."""

    def __init__(self, cluster: ClusterNode, leader: Leader, led: Led, *, wait_seconds: float) -> None:
        """``leader`` is this node's, for when it leads. ``wait_seconds``: how long a request may wait for a
        place."""
        self._cluster = cluster
        self._leader = leader
        self._led = led
        self._wait_seconds = wait_seconds

    async def place(self, question: Question) -> Decided:
        """Where it shall run. Raises ControlUnavailable, and InsufficientCapacity and ModelNotFound when the
        leader says that it cannot."""
        try:
            async with asyncio.timeout(self._wait_seconds):
                return await self._place(question)
        except TimeoutError as error:
            raise _unavailable(error) from error

    async def _place(self, question: Question) -> Decided:
        """From leader to leader; who gave no answer is told in the one that comes."""
        loop = asyncio.get_running_loop()
        silent: dict[Leads, str] = {}
        failing_since = 0.0
        while True:
            who = await self._led.somebody()
            try:
                answer = await self._while_leads(who, self._put(who.node, question))
                return replace(answer, refusals=(*silent.values(), *answer.refusals))
            except _Unanswered as error:
                if who not in silent:  # patience is with each leader anew, however long the last one took
                    failing_since = loop.time()
                if loop.time() - failing_since > self._led.patience_seconds:
                    raise _unavailable(error) from error
                silent[who] = f"{self._name(who.node)}, which led in epoch {who.epoch}: {error}"
            await asyncio.sleep(RETRY_SECONDS)

    async def _while_leads(self, who: Leads, answering: Coroutine[None, None, Decided]) -> Decided:
        """Its answer. Raises ControlUnavailable when it leads no more, whatever becomes of the connection."""
        loop = asyncio.get_running_loop()
        answer, gone = loop.create_task(answering), loop.create_task(self._led.until_not(who))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            raise ControlUnavailable("it leads no more, or is not well", retry_after_seconds=1.0)
        finally:
            answer.cancel()
            gone.cancel()

    async def _put(self, node: NodeId, question: Question) -> Decided:
        if node == self._cluster.identity.node:
            return await self._leader.place(question)
        packed = CODEC.pack(question)
        return unpack_decided(
            await self._cluster.call(node, PLACE, packed, deadline_seconds=self._wait_seconds)
        )

    def _name(self, node: NodeId) -> str:
        known = self._cluster.control.view().catalogue.nodes.get(node)
        return known.name if known is not None else node

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
        if self._led.who is None:
            raise ControlUnavailable("nobody leads", retry_after_seconds=1.0)
        return self._led.who.node

    async def _call(self, method: str, body: Any, deadline_seconds: float) -> Any:
        return await self._cluster.call(self._whom(), method, body, deadline_seconds=deadline_seconds)


def _unavailable(error: Exception) -> ControlUnavailable:
    return ControlUnavailable(f"the leader gives no answer: {error}", retry_after_seconds=1.0)

"""This node is emptied: no new work, what runs here goes on elsewhere, the leadership too; then it waits.

Owns: the methods over which a node asks every router to take its generations away, and is asked to drain::

    moves.empty  node id                     stream: (request id, model, result, target, pause in ms, outcome)
    node.drain   (deadline in s, moves)      stream: ``DrainStep`` as JSON
    node.undrain nil                         nil

What runs here belongs to the routers: each moves its own, this node's router among them, all at once. Nothing
is cut short: what could not be moved may finish until the deadline, and is counted after it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

import structlog

from sllmd.cluster.catalogue.commands import NodeCordon
from sllmd.cluster.node import ClusterNode
from sllmd.core.errors import ProtocolError, SllmdError
from sllmd.core.ids import NodeId
from sllmd.roles.agent import Agent
from sllmd.roles.passage import Passage
from sllmd.roles.router import Generation, Router
from sllmd.roles.status import DrainStep
from sllmd.telemetry.supervising import end_tasks
from sllmd.wire.rpc.methods import Caller, Methods

EMPTY, DRAIN, UNDRAIN = "moves.empty", "node.drain", "node.undrain"
AGAIN_SECONDS = 0.25
"""Until routers are asked again: what had not begun, or found no place, may move now."""

_log = structlog.get_logger(__name__)

Moved = tuple[str, str, str, str, float | None, str]


class Draining:
    """See the module."""

    def __init__(self, cluster: ClusterNode, agent: Agent, router: Router) -> None:
        self._cluster = cluster
        self._agent = agent
        self._router = router
        self._cordoned = False

    def offer(self, methods: Methods) -> None:
        """Move generations for others, and be drained by them."""
        methods.stream(EMPTY, self._on_empty)
        methods.stream(DRAIN, self._on_drain)
        methods.unary(UNDRAIN, self._on_undrain)

    # -- by order ------------------------------------------------------------------------------

    async def drain(self, deadline_seconds: float, *, moves: bool) -> AsyncGenerator[DrainStep, None]:
        """Empty this node, and let nothing come here until ``undrain``, not even after a restart.

        Raises ControlUnavailable and OutcomeUnknown before anything has stopped.
        """
        await self._cluster.control.propose(NodeCordon(self._cluster.identity.node, True))
        async with aclosing(self.empty(deadline_seconds, moves=moves)) as steps:
            async for step in steps:
                yield step

    async def undrain(self) -> None:
        """Take work again."""
        await self._cluster.control.propose(NodeCordon(self._cluster.identity.node, False))
        self._agent.resume()

    async def watch(self) -> None:
        """Do as the catalogue says of this node, for ever."""
        views = self._cluster.control.views()
        self._follow()
        async for _ in views:
            self._follow()

    def _follow(self) -> None:
        record = self._cluster.control.view().catalogue.nodes.get(self._cluster.identity.node)
        cordoned = record is not None and record.cordoned
        if cordoned == self._cordoned:
            return
        self._cordoned = cordoned
        if cordoned:
            self._agent.stop_taking("this node drains")
        else:
            self._agent.resume()

    # -- emptying ------------------------------------------------------------------------------

    async def empty(self, deadline_seconds: float, *, moves: bool = True) -> AsyncGenerator[DrainStep, None]:
        """No new work; what runs is moved, where there is another node, and waited for. One step per move."""
        began = time.monotonic()
        self._agent.stop_taking("this node drains")
        moved, told = 0, set[Moved]()
        handing_over = asyncio.get_running_loop().create_task(self._hand_over())
        try:
            yield self._step("draining", moved, began)
            while (left := deadline_seconds - (time.monotonic() - began)) > 0 and self._agent.running:
                if moves and self._cluster.members_here():
                    async with aclosing(self._ask_routers(left)) as results:
                        async for result in results:
                            moved += result[2] == "done"
                            if result not in told:  # who found no place is asked again and again
                                yield self._step("draining", moved, began, result)
                            told.add(result)
                await self._agent.idle_within(min(left, AGAIN_SECONDS))
        finally:
            handing_over.cancel()
            await asyncio.wait([handing_over])
        yield self._step("timeout" if self._agent.running else "drained", moved, began)

    async def _hand_over(self) -> None:
        if self._cluster.control.leadership().is_me and self._cluster.members_here():
            try:
                await self._cluster.control.hand_over()
            except SllmdError as error:
                _log.info("nobody takes the leadership", reason=str(error))

    def _step(
        self,
        status: Literal["draining", "drained", "timeout"],
        moved: int,
        began: float,
        result: Moved | None = None,
    ) -> DrainStep:
        request_id, model, outcome, target, pause_ms, reason = result or ("", "", "", "", None, "")
        return DrainStep(
            node=self._cluster.identity.name,
            status=status,
            request_id=request_id,
            model=model,
            result=outcome,
            target=self._name_of(NodeId(target)),
            pause_ms=pause_ms,
            reason=reason,
            moved=moved,
            left=self._agent.running,
            seconds=time.monotonic() - began,
        )

    def _name_of(self, node: NodeId) -> str:
        view = self._cluster.membership.member(node) if node else None
        return view.name if view is not None else node

    async def _ask_routers(self, seconds: float) -> AsyncGenerator[Moved, None]:
        """Every living router moves what it runs here; results as they come."""
        me = self._cluster.identity.node
        results: asyncio.Queue[Moved | None] = asyncio.Queue()

        async def ask(router: NodeId) -> None:
            try:
                async with asyncio.timeout(seconds):
                    if router == me:
                        async for each in self._move_all(me):
                            results.put_nowait(each)
                        return
                    connection = await self._cluster.connection(router)
                    async with connection.stream(EMPTY, me) as stream:
                        async for item in stream:
                            results.put_nowait(_read(item))
            except (SllmdError, TimeoutError) as error:
                _log.info("a router does not take its generations away", router=router, reason=str(error))
            finally:
                results.put_nowait(None)

        routers = [me, *(view.node for view in self._cluster.members_here())]
        tasks = [asyncio.get_running_loop().create_task(ask(router)) for router in routers]
        try:
            unfinished = len(tasks)
            while unfinished:
                result = await results.get()
                if result is None:
                    unfinished -= 1
                else:
                    yield result
        finally:
            await end_tasks(*tasks)

    # -- what routers are asked ----------------------------------------------------------------

    async def _on_empty(self, body: Any, _caller: Caller) -> AsyncGenerator[Moved, None]:
        if not isinstance(body, str):
            raise ProtocolError("whose generations to move cannot be understood")
        async with aclosing(self._move_all(NodeId(body))) as results:
            async for result in results:
                yield result

    async def _move_all(self, node: NodeId) -> AsyncGenerator[Moved, None]:
        """Move this router's generations away from ``node``; one result for each, as they come."""
        here = [each for each in self._router.running() if _is_at(each, node)]
        moves = [asyncio.ensure_future(self._move(generation)) for generation in here]
        try:
            for move in asyncio.as_completed(moves):
                yield await move
        finally:
            await end_tasks(*moves)

    async def _move(self, generation: Generation) -> Moved:
        assert generation.carriage is not None, "it runs somewhere"
        request_id, model = generation.request.request_id, generation.request.model
        try:
            passage: Passage = await self._router.mover.move(generation.carriage, None, "its node drains")
        except SllmdError as error:
            return request_id, model, "stays", "", None, str(error)
        return request_id, model, passage.result, passage.target, passage.pause_ms, passage.outcome or ""

    # -- what other nodes ask ------------------------------------------------------------------

    async def _on_drain(self, body: Any, _caller: Caller) -> AsyncGenerator[str, None]:
        match body:
            case (float() | int() as deadline_seconds, bool(moves)):
                pass
            case _:
                raise ProtocolError("an order to drain that cannot be understood")
        async with aclosing(self.drain(deadline_seconds, moves=moves)) as steps:
            async for step in steps:
                yield step.model_dump_json()

    async def _on_undrain(self, _body: Any, _caller: Caller) -> None:
        await self.undrain()

    async def drain_there(
        self, node: NodeId, deadline_seconds: float, *, moves: bool
    ) -> AsyncGenerator[DrainStep, None]:
        """Have ``node`` drain; what it tells of it. Raises PeerError, and what ``drain`` raises."""
        connection = await self._cluster.connection(node)
        async with connection.stream(DRAIN, (deadline_seconds, moves)) as steps:
            async for step in steps:
                try:
                    yield DrainStep.model_validate_json(step)
                except ValueError as error:
                    raise ProtocolError(f"a step of a drain that cannot be understood: {error}") from error

    async def undrain_there(self, node: NodeId) -> None:
        """Have ``node`` take work again. Raises the same."""
        await self._cluster.call(node, UNDRAIN, None)


def _is_at(generation: Generation, node: NodeId) -> bool:
    carriage = generation.carriage
    return carriage is not None and carriage.place is not None and carriage.place.node == node


def _read(item: Any) -> Moved:
    match item:
        case (
            str(request_id),
            str(model),
            str(result),
            str(target),
            float() | int() | None as pause_ms,
            str(outcome),
        ):
            return request_id, model, result, target, pause_ms, outcome
    raise ProtocolError("a move that cannot be understood")

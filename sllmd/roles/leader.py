"""The leader: where each cold model goes.

Idle unless this node leads. Then it keeps the scheduler's picture from the nodes' reports, and decides for
whoever asks; ``starts`` has its decisions agreed on and carried out, ``upkeep`` keeps true what was agreed.
What a node refuses is decided anew with the facts of that moment. Nothing is polled: questions, reports and
the catalogue wake it.

A new leader begins with an empty picture, asks every node for what it has (which fences the old leader's
orders there), and then answers; intents that no node knows of are dropped, and who waited asks again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from sllmd.cluster.node import ClusterNode
from sllmd.core.errors import InsufficientCapacity, ModelNotFound, NotHere, ProtocolError
from sllmd.core.ids import Digest, ModelName, NodeId, RequestId
from sllmd.roles.bell import Bell
from sllmd.roles.claims import Claims
from sllmd.roles.decided import CODEC, Decided, Question, decided, unpack_question
from sllmd.roles.foresight import Foresight
from sllmd.roles.inventory import Inventory
from sllmd.roles.orders import Orders
from sllmd.roles.picture import Picture, replica_id
from sllmd.roles.reporting import TOLD_SECONDS
from sllmd.roles.starts import MoveAway, Starts
from sllmd.roles.upkeep import GATHER_SECONDS, Upkeep
from sllmd.scheduler.decisions import Load, Placement, Refuse, Use, Wait, Way
from sllmd.scheduler.facts import Request
from sllmd.scheduler.placement import place
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.scheduler.victims import Option, Search
from sllmd.scheduler.view import ModelView, NodeView, ReplicaView
from sllmd.telemetry.supervising import keep_running

PLACE, PLAN, RETIRE = "place", "plan", "retire"
TRIES_MAX = 8
"""Nodes that may refuse one request's load before it is told so."""


class Patient(Search):
    """Busy replicas are waited for: that others may have more copies is no reason to move a stream."""

    def busy(self, node: NodeView, known: ModelView, replica: ReplicaView) -> Option | None:  # noqa: ARG002
        """See ``Search``."""
        return None if known.waiting else self.ends(known, replica)


@dataclass(frozen=True, slots=True)
class _Reign:
    """What a leader has for one epoch."""

    epoch: int
    starts: Starts
    upkeep: Upkeep
    claims: Claims
    tasks: tuple[asyncio.Task[None], ...]
    in_vain: dict[ModelName, int] = field(default_factory=dict)
    """Models that have to wait, as was decided after so many rings."""


class Leader:
    """See the module."""

    def __init__(
        self,
        cluster: ClusterNode,
        orders: Orders,
        settings: SchedulerSettings,
        alive: Callable[[], Collection[NodeId]],
    ) -> None:
        """``alive``: nodes that gossip believes well. They report what changes, so silence proves nothing."""
        self._cluster = cluster
        self._alive = alive
        self._orders = orders
        self._settings = settings
        self.picture = Picture(settings)
        self._asked = asyncio.Event()
        """Every node that answers has said what it has."""
        self._bell = Bell()
        self.move_away: MoveAway | None = None
        """None: busy replicas are waited for."""
        self._reign: _Reign | None = None

    @property
    def leads(self) -> bool:
        """Whether this node decides."""
        return self._reign is not None

    def offer(self, methods: Any) -> None:
        """Answer other nodes."""

        async def on_place(body: Any, _caller: Any) -> bytes:
            return CODEC.pack(await self.place(unpack_question(body)))

        async def on_plan(body: Any, _caller: Any) -> bytes:
            return CODEC.pack(self.plan(_model_of(body)))

        async def on_retire(body: Any, _caller: Any) -> None:
            await self.retire(_model_of(body))

        methods.unary(PLACE, on_place)
        methods.unary(PLAN, on_plan)
        methods.unary(RETIRE, on_retire)

    # -- a leader's life -----------------------------------------------------------------------

    def lead(self, epoch: int) -> None:
        """This node leads now; once for each epoch."""
        if self._reign is not None and self._reign.epoch == epoch:
            return
        self.rest()
        self.picture = picture = Picture(self._settings)
        self._asked = asyncio.Event()
        starts = Starts(self._cluster, self._orders, picture, epoch, self._tell, self.move_away)
        upkeep = Upkeep(self._cluster, picture, starts, self._bell, self._alive)
        tasks = [keep_running(self._follow), keep_running(lambda: self._keep_up(upkeep))]
        if self._settings.prefetch:
            foresight = Foresight(self._cluster, self._orders, picture, self._alive)
            tasks.append(keep_running(lambda: foresight.look_ahead(epoch)))
        self._reign = _Reign(epoch, starts, upkeep, Claims(), tuple(tasks))

    def rest(self) -> None:
        """Another node leads, or nobody; who waits here is sent away."""
        reign, self._reign = self._reign, None
        if reign is not None:
            for task in reign.tasks:
                task.cancel()
            reign.starts.close()
            reign.upkeep.close()
        self._asked.set()
        self._tell()

    def nodes_asked(self) -> None:
        """Every node that answers has said what it has."""
        self.picture.agree(self._cluster.control.view().catalogue, _now())
        self._asked.set()
        self._tell()

    def take(self, node: NodeId, inventory: Inventory | None) -> None:
        """A node reported; None: it is gone."""
        if self._reign is None:
            return
        if inventory is None:
            self.picture.forget(node)
        else:
            self.picture.take(node, inventory, _now())
            self._reign.claims.seen(node, _now())
        self._tell()

    def _tell(self) -> None:
        """Something has changed: whoever waits looks again."""
        self._bell.ring()
        if self._reign is not None:
            self._reign.upkeep.stir()

    async def _follow(self) -> None:
        views = self._cluster.control.views()
        self.picture.agree(self._cluster.control.view().catalogue, _now())
        async for view in views:
            self.picture.agree(view.catalogue, _now())
            self._tell()

    async def _keep_up(self, upkeep: Upkeep) -> None:
        await self._asked.wait()
        await upkeep.run()

    def _reigning(self, epoch: int | None = None) -> _Reign:
        """Raises NotHere when this node does not lead, or not in that epoch any more."""
        reign = self._reign
        if reign is None or epoch not in (None, reign.epoch):
            raise NotHere("this node does not lead")
        return reign

    # -- deciding ------------------------------------------------------------------------------

    async def place(self, question: Question) -> Decided:
        """Where it runs, once a node has taken it. Raises NotHere when this node does not lead (any more),
        ControlUnavailable and OutcomeUnknown when nothing can be agreed, InsufficientCapacity and
        ModelNotFound when it can run nowhere."""
        began, epoch = _now(), self._reigning().epoch
        await self._asked.wait()
        refusals: list[str] = []
        while True:
            reign, rings = self._reigning(epoch), self._bell.rings
            if reign.in_vain.get(question.model) == rings and not question.avoid:
                await self._until(rings, question)  # somebody has found out that it has to wait
                continue
            avoids = bool(reign.starts.avoided)
            placement = self._decide(reign, question)
            self._raise_if_final(reign, placement)
            refusal = await self._follow_up(reign, placement)
            if refusal is not None:
                refusals.append(refusal)
                if len(refusals) < TRIES_MAX:
                    continue
            answer = self._answer(reign, placement, _now() - began, tuple(refusals))
            if answer.node and refusal is None:
                reign.claims.sent(question.model, answer.node, _now())
            untold = self._is_untold(question, placement) and _now() - began < TOLD_SECONDS
            may_change = untold or self._may_change(placement, question, avoids=avoids)
            if answer.node or refusal is not None or not may_change:
                self._bell.served(key=question.key, priority=self._priority(question.model))
                return answer
            reign.in_vain[question.model] = rings
            try:
                await self._until(rings, question)
            finally:  # who leaves takes it along: nobody else would look again before the next ring
                reign.in_vain.pop(question.model, None)

    async def _follow_up(self, reign: _Reign, placement: Placement) -> str | None:
        """Have it so, or wait for the start that it joins; why a node refuses, or None."""
        decision, name = placement.decision, placement.model
        if isinstance(decision, Use | Refuse) or not placement.candidates:
            return None
        with reign.claims.joining(name):
            if isinstance(decision, Load):
                return await reign.starts.carry_out(decision, name)
            node = placement.candidates[0].node
            return await reign.starts.join(replica_id(name, self.picture.digests[name], node))

    def _raise_if_final(self, reign: _Reign, placement: Placement) -> None:
        """It can run nowhere, and no node that has not told yet what it has may change that."""
        if placement.model in reign.upkeep.retiring:
            raise ModelNotFound(f"`{placement.model}` is being deleted")
        if isinstance(placement.decision, Refuse) and self._have_all_told:
            hint = f"see `sllmd plan {placement.model}` for each node"
            raise InsufficientCapacity(placement.decision.missing, hint=hint)

    @property
    def _have_all_told(self) -> bool:
        trusted = all(node.trusted for node in self.picture.view.nodes.values())
        return trusted and self.picture.inventories.keys() >= set(self._alive())

    def _is_untold(self, question: Question, placement: Placement) -> bool:
        """It is deployed, and no report that tells of it has come yet."""
        if isinstance(placement.decision, Refuse):
            return True
        deployed = self._cluster.control.view().catalogue.deployments.get(question.model)
        is_wanted = deployed is not None and deployed.spec.digest == question.digest
        return is_wanted and self.picture.digests.get(question.model) != question.digest

    def _may_change(self, placement: Placement, question: Question, *, avoids: bool) -> bool:
        """Whether to wait: for a node that refused a moment ago, or whose devices are taken.

        Who was sent to a node that could not run it has waited already; its router knows whom else to ask.
        """
        taken = any(candidate.way is not Way.NONE for candidate in placement.candidates)
        return not question.avoid and (taken or avoids)

    def _priority(self, model: ModelName) -> int:
        known = self.picture.view.models.get(model)
        return known.model.rules.priority if known is not None else 0

    async def _until(self, rings: int, question: Question) -> None:
        """Something has changed and it is its turn, or somebody's minimum residency may have passed."""
        try:
            async with asyncio.timeout(self._settings.residency_min + GATHER_SECONDS):
                await self._bell.wait(rings, key=question.key, priority=self._priority(question.model))
        except TimeoutError:
            return

    def plan(self, model: ModelName) -> Decided:
        """What would be decided now. Raises NotHere."""
        began, reign = _now(), self._reigning()
        if not self._asked.is_set():
            raise NotHere("this node has just begun to lead")
        digest = self.picture.digests.get(model, Digest(""))
        placement = self._decide(reign, Question(RequestId("plan"), model, digest))
        return self._answer(reign, placement, _now() - began, ())

    def _decide(self, reign: _Reign, question: Question) -> Placement:
        model, now = question.model, _now()
        if model in reign.upkeep.retiring or self.picture.digests.get(model) != question.digest:
            untold = f"no node has told of this `{model}` yet"
            why = f"`{model}` is being deleted" if model in reign.upkeep.retiring else untold
            return Placement(model, Wait(why, math.inf), (), self.picture.view.version)
        known = self.picture.view.models[model]
        alive = self._alive()
        self.picture.keeper.heard(alive, now)
        lost = {*question.avoid, *(node for node in self.picture.view.nodes if node not in alive)}
        avoided = {*lost, *reign.starts.avoided, *known.holders}
        others = [node for node in self.picture.view.nodes if node not in avoided]
        request = Request(question.request_id, model, now)
        only = others if avoided else None
        ahead = known.waiting + reign.claims.ahead(model, now)
        view = self.picture.view
        searching = Patient if self.move_away is None else Search
        return place(view, request, now, ahead=ahead, only=only, without=lost, searching=searching)

    def _answer(
        self, reign: _Reign, placement: Placement, decide_seconds: float, refusals: tuple[str, ...]
    ) -> Decided:
        return decided(
            placement,
            decide_seconds=decide_seconds,
            leader=self._cluster.identity.node,
            epoch=reign.epoch,
            refusals=refusals,
        )

    async def retire(self, model: ModelName) -> None:
        """Have every replica of a model go, so that it can be deleted. Raises NotHere."""
        epoch = self._reigning().epoch
        await self._asked.wait()
        await self._reigning(epoch).upkeep.retire(model)


def _now() -> float:
    """Of a clock that does not jump."""
    return asyncio.get_running_loop().time()


def _model_of(body: Any) -> ModelName:
    if not isinstance(body, str):
        raise ProtocolError("no name of a model")
    return ModelName(body)

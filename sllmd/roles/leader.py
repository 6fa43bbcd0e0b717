"""The leader: where each cold model goes, agreed on before it is ordered, and what becomes of it.

Idle unless this node leads. Then it keeps the scheduler's picture from the nodes' reports, and decides for
whoever asks. Order of a start: promised in the picture (nobody else gets the devices), victims go, it is
agreed (an intent in the catalogue), the node is ordered; whatever refuses takes the promise back, and the
decision is made anew with the facts of that moment. Nothing is polled: questions, reports and the catalogue
wake it.

A new leader begins with an empty picture, asks every node for what it has (which fences the old leader's
orders there), and then answers; intents that no node knows of are dropped, and who waited asks again.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Coroutine
from typing import Any

import structlog

from sllmd.cluster.catalogue.commands import Body, ReplicaGone, ReplicaPlan
from sllmd.cluster.catalogue.records import Deployment
from sllmd.cluster.catalogue.results import Denied, Done, PlanResult
from sllmd.cluster.node import ClusterNode
from sllmd.core.errors import (
    InsufficientCapacity,
    ModelNotFound,
    NotHere,
    PeerError,
    ProtocolError,
    SllmdError,
    StoreError,
)
from sllmd.core.ids import Digest, ModelName, NodeId, ReplicaId, RequestId
from sllmd.roles.bell import Bell
from sllmd.roles.decided import CODEC, Decided, Question, decided, unpack_question
from sllmd.roles.foresight import Foresight
from sllmd.roles.intents import intent, repairs
from sllmd.roles.inventory import Inventory
from sllmd.roles.orders import Order, Orders, Verb, Verdict, give_order
from sllmd.roles.picture import Picture, replica_id
from sllmd.roles.reporting import TOLD_SECONDS
from sllmd.scheduler.decisions import Load, Move, Placement, Refuse, Use, Wait, Way
from sllmd.scheduler.facts import Model, Request
from sllmd.scheduler.placement import place
from sllmd.scheduler.scaling import Steady, further, scale
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.scheduler.victims import Option, Search
from sllmd.scheduler.view import ModelView, NodeView, ReplicaState, ReplicaView
from sllmd.telemetry.supervising import keep_running

PLACE, PLAN, RETIRE = "place", "plan", "retire"
TRIES_MAX = 8
"""Nodes that may refuse one request's load before it is told so."""
PROMISE_SECONDS = 3.0
"""How long a node may take from accepting a load to reporting it; twice the estimate if that is more."""
AVOID_SECONDS = 2.0
"""How long a node that refused or was not reached gets nothing new."""
SENT_SECONDS = 0.5
"""How long a request that was sent to a replica counts as being there, before its node has said so."""
SEEN_SECONDS = 0.05
"""After which a request that was sent to a node is in the node's next report."""
GATHER_SECONDS = 0.05
"""What changes together is repaired together."""
RETIRE_SECONDS = 10.0
"""For the replicas of a model that is deleted to go."""
CHANGED = "its deployment changed meanwhile"
"""Why a start is decided anew though nothing is wrong with its node."""
RETRY_SECONDS = 1.0
"""After something could not be agreed, or not be carried out."""

_log = structlog.get_logger(__name__)


MoveAway = Callable[[ModelName, NodeId, NodeId], Coroutine[Any, Any, object]]
"""Has every router move what it runs of a model from one node to another; returns when that is over."""


class Patient(Search):
    """Busy replicas are waited for: that others may have more copies is no reason to move a stream."""

    def busy(self, node: NodeView, known: ModelView, replica: ReplicaView) -> Option | None:  # noqa: ARG002
        """See ``Search``."""
        return None if known.waiting else self.ends(known, replica)


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
        self._epoch = 0
        self.picture = Picture(settings)
        self._asked = asyncio.Event()
        self._bell = Bell()
        self._dirty = asyncio.Event()
        self._works: dict[ReplicaId, asyncio.Task[str | None]] = {}
        self._expiries: dict[ReplicaId, asyncio.TimerHandle] = {}
        self._avoided: dict[NodeId, float] = {}
        self._sent: dict[ModelName, list[tuple[float, NodeId]]] = defaultdict(list)
        self._joined: Counter[ModelName] = Counter()
        """Requests that wait for a node to take the start that is theirs."""
        self._steady: dict[ModelName, Steady] = defaultdict(Steady)
        self._retiring: set[ModelName] = set()
        self._alarm: asyncio.TimerHandle | None = None
        """When to look at the numbers of replicas again though nothing has changed."""
        self._denied: set[str] = set()
        self.move_away: MoveAway | None = None
        """None: busy replicas are waited for."""
        self._moves: set[asyncio.Task[object]] = set()
        self._in_vain: dict[ModelName, int] = {}
        """Models that have to wait, as was decided after so many rings."""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def leads(self) -> bool:
        """Whether this node decides."""
        return bool(self._tasks)

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
        if self.leads and self._epoch == epoch:
            return
        self.rest()
        self._epoch = epoch
        self.picture = Picture(self._settings)
        self._asked = asyncio.Event()
        self._tasks = [keep_running(self._follow), keep_running(self._serve)]
        if self._settings.prefetch:
            foresight = Foresight(self._cluster, self._orders, self.picture, self._alive)
            self._tasks.append(keep_running(lambda: foresight.look_ahead(epoch)))

    def rest(self) -> None:
        """Another node leads, or nobody; who waits here is sent away."""
        for task in [*self._tasks, *self._works.values(), *self._moves]:
            task.cancel()
        for timer in [*self._expiries.values(), *([self._alarm] if self._alarm else [])]:
            timer.cancel()
        self._tasks = []
        self._works.clear()
        self._expiries.clear()
        self._avoided.clear()
        self._sent.clear()
        self._in_vain.clear()
        self._steady.clear()
        self._retiring.clear()
        self._denied.clear()
        self._asked.set()
        self._tell()

    def nodes_asked(self) -> None:
        """Every node that answers has said what it has."""
        self.picture.agree(self._cluster.control.view().catalogue, _now())
        self._asked.set()
        self._tell()

    def take(self, node: NodeId, inventory: Inventory | None) -> None:
        """A node reported; None: it is gone."""
        if not self.leads:
            return
        if inventory is None:
            self.picture.forget(node)
        else:
            self.picture.take(node, inventory, _now())
            self._seen(node)
        self._tell()

    def _seen(self, node: NodeId) -> None:
        """A report of ``node``: what was sent there a while ago is in it."""
        before = _now() - SEEN_SECONDS
        for model, sent in list(self._sent.items()):
            self._sent[model] = [each for each in sent if each[1] != node or each[0] > before]
            if not self._sent[model]:
                del self._sent[model]

    def _tell(self) -> None:
        """Something has changed: whoever waits looks again."""
        self._bell.ring()
        self._dirty.set()

    async def _follow(self) -> None:
        views = self._cluster.control.views()
        self.picture.agree(self._cluster.control.view().catalogue, _now())
        async for view in views:
            self.picture.agree(view.catalogue, _now())
            self._tell()

    # -- deciding ------------------------------------------------------------------------------

    async def place(self, question: Question) -> Decided:
        """Where it runs, once a node has taken it. Raises NotHere when this node does not lead (any more),
        ControlUnavailable and OutcomeUnknown when nothing can be agreed, InsufficientCapacity and
        ModelNotFound when it can run nowhere."""
        began, epoch = _now(), self._epoch
        await self._asked.wait()
        refusals: list[str] = []
        while True:
            if not self.leads or self._epoch != epoch:
                raise NotHere("this node does not lead")
            rings = self._bell.rings
            if self._in_vain.get(question.model) == rings and not question.avoid:
                await self._until(rings, question)  # somebody has found out that it has to wait
                continue
            self._avoid_nobody_late()
            placement = self._decide(question)
            self._raise_if_final(placement)
            refusal = await self._follow_up(placement, question.model)
            if refusal is not None:
                refusals.append(refusal)
                if len(refusals) < TRIES_MAX:
                    continue
            answer = self._answer(placement, _now() - began, tuple(refusals))
            if answer.node and refusal is None:
                self._sent[question.model].append((_now(), answer.node))
            untold = self._is_untold(question, placement) and _now() - began < TOLD_SECONDS
            may_change = untold or self._may_change(placement, question)
            if answer.node or refusal is not None or not may_change:
                self._bell.served(key=question.key, priority=self._priority(question.model))
                return answer
            self._in_vain[question.model] = rings
            try:
                await self._until(rings, question)
            finally:  # who leaves takes it along: nobody else would look again before the next ring
                self._in_vain.pop(question.model, None)

    async def _follow_up(self, placement: Placement, model: ModelName) -> str | None:
        """Have it so; who waits here for a start counts before whoever asks later."""
        self._joined[model] += 1
        try:
            if isinstance(placement.decision, Load):
                return await self._carry_out(placement.decision, model)
            return await self._join(placement)
        finally:
            self._joined[model] -= 1

    def _raise_if_final(self, placement: Placement) -> None:
        """It can run nowhere, and no node that has not told yet what it has may change that."""
        if placement.model in self._retiring:
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
        deployed = self._deployment(question.model)
        is_wanted = deployed is not None and deployed.spec.digest == question.digest
        return is_wanted and self.picture.digests.get(question.model) != question.digest

    def _may_change(self, placement: Placement, question: Question) -> bool:
        """Whether to wait: for a node that refused a moment ago, or whose devices are taken.

        Who was sent to a node that could not run it has waited already; its router knows whom else to ask.
        """
        taken = any(candidate.way is not Way.NONE for candidate in placement.candidates)
        return not question.avoid and (taken or bool(self._avoided))

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
        if not self.leads or not self._asked.is_set():
            raise NotHere("this node does not lead")
        began = _now()
        digest = self.picture.digests.get(model, Digest(""))
        placement = self._decide(Question(RequestId("plan"), model, digest))
        return self._answer(placement, _now() - began, ())

    def _decide(self, question: Question) -> Placement:
        model, now = question.model, _now()
        if model in self._retiring or self.picture.digests.get(model) != question.digest:
            untold = f"no node has told of this `{model}` yet"
            why = f"`{model}` is being deleted" if model in self._retiring else untold
            return Placement(model, Wait(why, math.inf), (), self.picture.view.version)
        known = self.picture.view.models[model]
        holders = _holders(known)
        alive = self._alive()
        self.picture.keeper.heard(alive, now)
        lost = {*question.avoid, *(node for node in self.picture.view.nodes if node not in alive)}
        avoided = {*lost, *self._avoided, *holders}
        others = [node for node in self.picture.view.nodes if node not in avoided]
        recent = [each for each in self._sent[model] if now - each[0] < SENT_SECONDS]
        self._sent[model] = recent
        request = Request(question.request_id, model, now)
        only = others if avoided else None
        ahead = known.waiting + len(recent) + self._joined[model]
        view = self.picture.view
        searching = Patient if self.move_away is None else Search
        return place(view, request, now, ahead=ahead, only=only, without=lost, searching=searching)

    def _answer(self, placement: Placement, decide_seconds: float, refusals: tuple[str, ...]) -> Decided:
        return decided(
            placement,
            decide_seconds=decide_seconds,
            leader=self._cluster.identity.node,
            epoch=self._epoch,
            refusals=refusals,
        )

    def _avoid_nobody_late(self) -> None:
        now = _now()
        self._avoided = {node: until for node, until in self._avoided.items() if until > now}

    def _avoid(self, node: NodeId) -> None:
        self._avoided[node] = _now() + AVOID_SECONDS
        asyncio.get_running_loop().call_later(AVOID_SECONDS, self._tell)

    # -- carrying out --------------------------------------------------------------------------

    async def _join(self, placement: Placement) -> str | None:
        """Wait for a start of this model that is on its way to the node chosen, if there is one."""
        if isinstance(placement.decision, Use | Refuse) or not placement.candidates:
            return None
        node = placement.candidates[0].node
        digest = self.picture.digests[placement.model]
        work = self._works.get(replica_id(placement.model, digest, node))
        return None if work is None else await _outcome(work)

    async def _carry_out(self, load: Load, name: ModelName) -> str | None:
        """Why the node does not, or None. Goes on when the one who asked leaves."""
        return await _outcome(self._begin(load, name))

    def _begin(self, load: Load, name: ModelName, *, stays: bool = False) -> asyncio.Task[str | None]:
        """Promise, agree, order; ``stays``: it is loaded though nobody waits for it."""
        model, digest = self.picture.view.models[name].model, self.picture.digests[name]
        key = replica_id(name, digest, load.node)
        self.picture.keeper.promise(key, model, load, _now())
        work = asyncio.get_running_loop().create_task(self._start(key, digest, model, load, stays=stays))
        self._works[key] = work
        work.add_done_callback(lambda done: self._started(key, load, done))
        return work

    def _started(self, key: ReplicaId, load: Load, work: asyncio.Task[str | None]) -> None:
        if self._works.get(key) is not work:
            return  # this node led in another epoch
        del self._works[key]
        failed = work.cancelled() or work.exception() is not None
        if failed or work.result() is not None:
            reason = "given up" if work.cancelled() else work.exception() or work.result()
            _log.info("replica not started", replica=key, reason=str(reason))
            self.picture.keeper.withdraw(key)
            if failed or work.result() != CHANGED:
                self._avoid(load.node)
        else:
            seconds = max(PROMISE_SECONDS, 2 * load.startup_seconds)
            loop = asyncio.get_running_loop()
            self._expiries[key] = loop.call_later(seconds, self._expire, key)
        self._tell()

    def _expire(self, key: ReplicaId) -> None:
        """A promise that came to nothing without a word."""
        self._expiries.pop(key, None)
        promised = self.picture.view.replicas.get(key)
        if promised is not None and promised.state is ReplicaState.PROMISED:
            self.picture.keeper.withdraw(key)
            self._tell()

    async def _start(
        self, key: ReplicaId, digest: Digest, model: Model, load: Load, *, stays: bool
    ) -> str | None:
        epoch, deployment = self._epoch, self._deployment(model.name)
        for victim in load.victims:
            replica = self.picture.view.replicas.get(victim.replica)
            await self._unload(victim.replica, "it makes room")
            if isinstance(victim, Move) and replica is not None:
                self._begin_to_move(victim, replica.node)
        if self._deployment(model.name) != deployment:
            return CHANGED
        revision = await self._agree(key, model, load)
        if isinstance(revision, str):
            return f"{self._name(load.node)}: {revision}"
        order_id = f"{key}#{revision}"
        waits = bool(load.victims)
        order = Order(epoch, order_id, Verb.LOAD, model.name, digest, revision, waits=waits, stays=stays)
        try:
            answer = await give_order(self._cluster, self._orders, load.node, order)
        except (PeerError, StoreError) as error:
            return f"{self._name(load.node)}: {error}"
        if answer.verdict is Verdict.ACCEPTED:
            return None
        return f"{self._name(load.node)}: {answer.reason}"

    def _begin_to_move(self, move: Move, source: NodeId) -> None:
        """What runs on a victim leaves it; what cannot, or would gain nothing, ends where it is. The load
        waits at its node for either."""
        assert self.move_away is not None, "else nothing is moved"
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(
            self.move_away(move.model, source, move.target_node), name=f"moving {move.replica}"
        )
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)

    def _deployment(self, name: ModelName) -> Deployment | None:
        return self._cluster.control.view().catalogue.deployments.get(name)

    async def _agree(self, key: ReplicaId, model: Model, load: Load) -> int | str:
        """The revision of the intent, or why there is none."""
        catalogue = self._cluster.control.view().catalogue
        old = catalogue.replicas.get(key)
        if old is not None:  # of a replica that is gone, or went while this was decided
            await self._propose(ReplicaGone(key, old.revision, "started anew"))
        inventory = self.picture.inventories.get(load.node)
        if inventory is None:
            return "it is gone"
        planned = intent(key, model, load.node, load.devices, inventory)
        result = await self._propose(ReplicaPlan((planned,)))
        if not isinstance(result, PlanResult):
            return result.message if isinstance(result, Denied) else "nothing was agreed"
        item = result.items[0]
        return item.revision if item.reason is None else f"not agreed: {item.reason}"

    async def _unload(self, key: ReplicaId, cause: str) -> None:
        """A replica goes when its running requests are done; its bytes stay in DRAM. Its intent goes first:
        what is to come there may be agreed."""
        replica = self.picture.view.replicas.get(key)
        agreed = self._cluster.control.view().catalogue.replicas.get(key)
        if replica is None:
            return
        name, digest = replica.model.name, self._digest_of(replica)
        self.picture.keeper.close(key)
        revision = self._cluster.control.view().catalogue.revision
        if agreed is not None:
            result = await self._propose(ReplicaGone(key, agreed.revision, cause))
            revision = result.revision if isinstance(result, Done) else revision
        order = Order(self._epoch, f"{key}#{revision}-", Verb.UNLOAD, name, digest, revision)
        try:
            await give_order(self._cluster, self._orders, replica.node, order)
        except (PeerError, StoreError) as error:
            _log.info("replica not unloaded", replica=key, reason=str(error))

    def _digest_of(self, replica: ReplicaView) -> Digest:
        facts = self.picture.inventories[replica.node].replicas
        mine = (f.digest for f in facts if replica_id(f.model, f.digest, replica.node) == replica.replica)
        return next(mine, self.picture.digests.get(replica.model.name, Digest("")))

    async def _propose(self, body: Body) -> Any:
        return await self._cluster.control.propose(body, epoch=self._epoch)

    def _name(self, node: NodeId) -> str:
        known = self.picture.view.nodes.get(node)
        return known.name if known is not None else node

    # -- keeping it true -----------------------------------------------------------------------

    async def _serve(self) -> None:
        """Whenever something has changed: what is agreed follows what is, and replicas follow the wishes."""
        await self._asked.wait()
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._repair()
                await self._scale()
            except SllmdError as error:  # mostly: nothing can be agreed just now
                _log.info("the leader tries again", reason=str(error))
                await asyncio.sleep(RETRY_SECONDS)
                self._dirty.set()
            await asyncio.sleep(GATHER_SECONDS)

    async def _repair(self) -> None:
        catalogue = self._cluster.control.view().catalogue
        promised = {
            r.replica for r in self.picture.view.replicas.values() if r.state is ReplicaState.PROMISED
        }
        under_way = {*self._works, *promised}
        for command in list(repairs(catalogue, self.picture, under_way, self._alive())):
            if str(command) in self._denied:
                continue
            result = await self._propose(command)
            if isinstance(result, PlanResult) and result.items[0].reason is not None:
                self._denied.add(str(command))

    async def _scale(self) -> None:
        """As many replicas as the models' owners and their queues ask for; one more at a time each."""
        now, view, again = _now(), self.picture.view, math.inf
        self.picture.keeper.heard(self._alive(), now)
        for name, known in list(view.models.items()):
            if name in self._retiring:
                continue
            step = scale(view, known, self._steady[name], now)
            again = min(again, step.again_seconds)
            if step.missing:
                self._add(known, now)
            elif step.surplus is not None:
                await self._unload(step.surplus, "fewer are needed")
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = None
        if again < math.inf:
            self._alarm = asyncio.get_running_loop().call_at(again, self._dirty.set)

    def _add(self, known: ModelView, now: float) -> None:
        """One more replica, on a node that has none, where there is room for it."""
        taken = _holders(known) | set(self._avoided)
        only = [node for node in self._alive() if node not in taken]
        load = further(self.picture.view, known, now, only)
        if load is not None:
            self._begin(load, known.model.name, stays=True)

    async def retire(self, model: ModelName) -> None:
        """Have every replica of a model go, so that it can be deleted. Raises NotHere."""
        if not self.leads:
            raise NotHere("this node does not lead")
        await self._asked.wait()
        self._retiring.add(model)
        try:
            async with asyncio.timeout(RETIRE_SECONDS):
                await self._all_gone(model)
        except TimeoutError:
            _log.info("replicas of a model that is to be deleted still work", model=model)
        finally:
            self._retiring.discard(model)

    async def _all_gone(self, model: ModelName) -> None:
        asked: set[ReplicaId] = set()
        while True:
            rings = self._bell.rings
            for replica in list(self.picture.view.replicas.values()):
                if replica.model.name == model and replica.replica not in asked:
                    asked.add(replica.replica)
                    await self._unload(replica.replica, "its model is deleted")
            agreed = self._cluster.control.view().catalogue.replicas.values()
            if not any(each.deployment == model for each in agreed):
                return
            await self._bell.wait(rings)


def _holders(known: ModelView) -> set[NodeId]:
    """Nodes where it has a replica that does not sleep: a node has one at most."""
    return {each.node for each in known.replicas.values() if each.state is not ReplicaState.ASLEEP}


async def _outcome(work: asyncio.Task[str | None]) -> str | None:
    """What a start comes to; it goes on without who waits. Raises NotHere when this node leads no more."""
    await asyncio.wait([work])
    if work.cancelled():
        raise NotHere("this node does not lead any more")
    return work.result()


def _now() -> float:
    """Of a clock that does not jump."""
    return asyncio.get_running_loop().time()


def _model_of(body: Any) -> ModelName:
    if not isinstance(body, str):
        raise ProtocolError("no name of a model")
    return ModelName(body)

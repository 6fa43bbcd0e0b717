"""Replicas that start and go because a leader has ordered it, in one epoch.

Order of a start: promised in the picture (nobody else gets the devices), victims go, it is agreed (an intent
in the catalogue), the node is ordered; whatever refuses takes the promise back, and the node gets nothing new
for a moment. Owns: the starts under way and the moves that make room for them, promises that await their
first report, and who is avoided.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from sllmd.cluster.catalogue.commands import Body, ReplicaGone, ReplicaPlan
from sllmd.cluster.catalogue.records import Deployment
from sllmd.cluster.catalogue.results import Denied, Done, PlanResult
from sllmd.cluster.node import ClusterNode
from sllmd.core.errors import NotHere, PeerError, StoreError
from sllmd.core.ids import Digest, ModelName, NodeId, ReplicaId
from sllmd.roles.intents import intent
from sllmd.roles.orders import Order, Orders, Verb, Verdict, give_order
from sllmd.roles.picture import Picture, replica_id
from sllmd.scheduler.decisions import Load, Move
from sllmd.scheduler.facts import Model
from sllmd.scheduler.view import ReplicaState, ReplicaView

PROMISE_SECONDS = 3.0
"""How long a node may take from accepting a load to reporting it; twice the estimate if that is more."""
AVOID_SECONDS = 2.0
"""How long a node that refused or was not reached gets nothing new."""

CHANGED = "its deployment changed meanwhile"
"""Why a start is decided anew though nothing is wrong with its node."""

MoveAway = Callable[[ModelName, NodeId, NodeId], Coroutine[Any, Any, object]]
"""Has every router move what it runs of a model from one node to another; returns when that is over."""

_log = structlog.get_logger(__name__)


class Starts:
    """See the module."""

    def __init__(
        self,
        cluster: ClusterNode,
        orders: Orders,
        picture: Picture,
        epoch: int,
        tell: Callable[[], None],
        move_away: MoveAway | None,
    ) -> None:
        """``tell``: called when something has changed."""
        self._cluster = cluster
        self._orders = orders
        self._picture = picture
        self._epoch = epoch
        self._tell = tell
        self._move_away = move_away
        self._works: dict[ReplicaId, asyncio.Task[str | None]] = {}
        self._expiries: dict[ReplicaId, asyncio.TimerHandle] = {}
        self._avoided: dict[NodeId, float] = {}
        self._moves: set[asyncio.Task[object]] = set()

    def close(self) -> None:
        """The epoch is over: who waits for a start is sent away."""
        works, self._works = self._works, {}
        for task in [*works.values(), *self._moves]:
            task.cancel()
        for expiry in self._expiries.values():
            expiry.cancel()

    @property
    def under_way(self) -> set[ReplicaId]:
        """Replicas whose start no node has reported yet."""
        replicas = self._picture.view.replicas.values()
        promised = {each.replica for each in replicas if each.state is ReplicaState.PROMISED}
        return promised.union(self._works)

    @property
    def avoided(self) -> set[NodeId]:
        """Nodes that get nothing new for a moment."""
        now = _now()
        self._avoided = {node: until for node, until in self._avoided.items() if until > now}
        return set(self._avoided)

    def _avoid(self, node: NodeId) -> None:
        self._avoided[node] = _now() + AVOID_SECONDS
        asyncio.get_running_loop().call_later(AVOID_SECONDS, self._tell)

    # -- starting ------------------------------------------------------------------------------

    async def join(self, key: ReplicaId) -> str | None:
        """Wait for a start that is under way, if it is; why its node refuses, or None. Raises NotHere."""
        work = self._works.get(key)
        return None if work is None else await _outcome(work)

    async def carry_out(self, load: Load, name: ModelName) -> str | None:
        """Why the node does not, or None. Goes on when the one who asked leaves. Raises NotHere."""
        return await _outcome(self.begin(load, name))

    def begin(self, load: Load, name: ModelName, *, stays: bool = False) -> asyncio.Task[str | None]:
        """See the module; ``stays``: it is loaded though nobody waits for it."""
        model, digest = self._picture.view.models[name].model, self._picture.digests[name]
        key = replica_id(name, digest, load.node)
        self._picture.keeper.promise(key, model, load, _now())
        work = asyncio.get_running_loop().create_task(self._start(key, digest, model, load, stays=stays))
        self._works[key] = work
        work.add_done_callback(lambda done: self._started(key, load, done))
        return work

    def _started(self, key: ReplicaId, load: Load, work: asyncio.Task[str | None]) -> None:
        if self._works.get(key) is not work:
            return  # the epoch is over
        del self._works[key]
        failed = work.cancelled() or work.exception() is not None
        if failed or work.result() is not None:
            reason = "given up" if work.cancelled() else work.exception() or work.result()
            _log.info("replica not started", replica=key, reason=str(reason))
            self._picture.keeper.withdraw(key)
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
        promised = self._picture.view.replicas.get(key)
        if promised is not None and promised.state is ReplicaState.PROMISED:
            self._picture.keeper.withdraw(key)
            self._tell()

    async def _start(
        self, key: ReplicaId, digest: Digest, model: Model, load: Load, *, stays: bool
    ) -> str | None:
        deployment = self._deployment(model.name)
        for victim in load.victims:
            replica = self._picture.view.replicas.get(victim.replica)
            await self.unload(victim.replica, "it makes room")
            if isinstance(victim, Move) and replica is not None:
                self._begin_to_move(victim, replica.node)
        if self._deployment(model.name) != deployment:
            return CHANGED
        revision = await self._agree(key, model, load)
        if isinstance(revision, str):
            return f"{self._name(load.node)}: {revision}"
        order_id = f"{key}#{revision}"
        waits = bool(load.victims)
        order = Order(
            self._epoch, order_id, Verb.LOAD, model.name, digest, revision, waits=waits, stays=stays
        )
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
        assert self._move_away is not None, "else nothing is moved"
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(
            self._move_away(move.model, source, move.target_node), name=f"moving {move.replica}"
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
            await self.propose(ReplicaGone(key, old.revision, "started anew"))
        inventory = self._picture.inventories.get(load.node)
        if inventory is None:
            return "it is gone"
        planned = intent(key, model, load.node, load.devices, inventory)
        result = await self.propose(ReplicaPlan((planned,)))
        if not isinstance(result, PlanResult):
            return result.message if isinstance(result, Denied) else "nothing was agreed"
        item = result.items[0]
        return item.revision if item.reason is None else f"not agreed: {item.reason}"

    # -- going ---------------------------------------------------------------------------------

    async def unload(self, key: ReplicaId, cause: str) -> None:
        """A replica goes when its running requests are done; its bytes stay in DRAM. Its intent goes first:
        what is to come there may be agreed."""
        replica = self._picture.view.replicas.get(key)
        agreed = self._cluster.control.view().catalogue.replicas.get(key)
        if replica is None:
            return
        name, digest = replica.model.name, self._digest_of(replica)
        self._picture.keeper.close(key)
        revision = self._cluster.control.view().catalogue.revision
        if agreed is not None:
            result = await self.propose(ReplicaGone(key, agreed.revision, cause))
            revision = result.revision if isinstance(result, Done) else revision
        order = Order(self._epoch, f"{key}#{revision}-", Verb.UNLOAD, name, digest, revision)
        try:
            await give_order(self._cluster, self._orders, replica.node, order)
        except (PeerError, StoreError) as error:
            _log.info("replica not unloaded", replica=key, reason=str(error))

    def _digest_of(self, replica: ReplicaView) -> Digest:
        facts = self._picture.inventories[replica.node].replicas
        mine = (f.digest for f in facts if replica_id(f.model, f.digest, replica.node) == replica.replica)
        return next(mine, self._picture.digests.get(replica.model.name, Digest("")))

    async def propose(self, body: Body) -> Any:
        """Have it agreed, in this epoch. Raises ControlUnavailable, OutcomeUnknown."""
        return await self._cluster.control.propose(body, epoch=self._epoch)

    def _name(self, node: NodeId) -> str:
        known = self._picture.view.nodes.get(node)
        return known.name if known is not None else node


async def _outcome(work: asyncio.Task[str | None]) -> str | None:
    """What a start comes to; it goes on without who waits. Raises NotHere when this node leads no more."""
    await asyncio.wait([work])
    if work.cancelled():
        raise NotHere("this node does not lead any more")
    return work.result()


def _now() -> float:
    """Of a clock that does not jump."""
    return asyncio.get_running_loop().time()

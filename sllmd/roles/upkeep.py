"""What a leader keeps true in its epoch: intents follow what is, replicas follow the wishes for them.

Owns: what is remembered of each model's wishes, which models are being deleted, which repairs were denied.
Stirred by what changes, and by the clock when fewer replicas may be enough.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Collection

import structlog

from sllmd.cluster.catalogue.results import PlanResult
from sllmd.cluster.node import ClusterNode
from sllmd.core.errors import SllmdError
from sllmd.core.ids import ModelName, NodeId, ReplicaId
from sllmd.roles.bell import Bell
from sllmd.roles.intents import repairs
from sllmd.roles.picture import Picture
from sllmd.roles.starts import Starts
from sllmd.scheduler.scaling import Steady, further, scale
from sllmd.scheduler.view import ModelView

GATHER_SECONDS = 0.05
"""What changes together is repaired together."""
RETIRE_SECONDS = 10.0
"""For the replicas of a model that is deleted to go."""
RETRY_SECONDS = 1.0
"""After something could not be agreed, or not be carried out."""

_log = structlog.get_logger(__name__)


class Upkeep:
    """See the module."""

    def __init__(
        self,
        cluster: ClusterNode,
        picture: Picture,
        starts: Starts,
        bell: Bell,
        alive: Callable[[], Collection[NodeId]],
    ) -> None:
        self.retiring: set[ModelName] = set()
        """Models that are being deleted."""
        self._cluster = cluster
        self._picture = picture
        self._starts = starts
        self._bell = bell
        self._alive = alive
        self._steady: dict[ModelName, Steady] = defaultdict(Steady)
        self._dirty = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        """When to look at the numbers of replicas again though nothing has changed."""
        self._denied: set[str] = set()

    def close(self) -> None:
        """The epoch is over."""
        if self._alarm is not None:
            self._alarm.cancel()

    def stir(self) -> None:
        """Something has changed: look again."""
        self._dirty.set()

    async def run(self) -> None:
        """For as long as the epoch lasts."""
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
        under_way = self._starts.under_way
        for command in list(repairs(catalogue, self._picture, under_way, self._alive())):
            if str(command) in self._denied:
                continue
            result = await self._starts.propose(command)
            if isinstance(result, PlanResult) and result.items[0].reason is not None:
                self._denied.add(str(command))

    async def _scale(self) -> None:
        """As many replicas as the models' owners and their queues ask for; one more at a time each."""
        now, view, again = asyncio.get_running_loop().time(), self._picture.view, math.inf
        self._picture.keeper.heard(self._alive(), now)
        for name, known in list(view.models.items()):
            if name in self.retiring:
                continue
            step = scale(view, known, self._steady[name], now)
            again = min(again, step.again_seconds)
            if step.missing:
                self._add(known, now)
            elif step.surplus is not None:
                await self._starts.unload(step.surplus, "fewer are needed")
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = None
        if again < math.inf:
            self._alarm = asyncio.get_running_loop().call_at(again, self._dirty.set)

    def _add(self, known: ModelView, now: float) -> None:
        """One more replica, on a node that has none, where there is room for it."""
        taken = known.holders | self._starts.avoided
        only = [node for node in self._alive() if node not in taken]
        load = further(self._picture.view, known, now, only)
        if load is not None:
            self._starts.begin(load, known.model.name, stays=True)

    async def retire(self, model: ModelName) -> None:
        """Have every replica of a model go, so that it can be deleted."""
        self.retiring.add(model)
        try:
            async with asyncio.timeout(RETIRE_SECONDS):
                await self._all_gone(model)
        except TimeoutError:
            _log.info("replicas of a model that is to be deleted still work", model=model)
        finally:
            self.retiring.discard(model)

    async def _all_gone(self, model: ModelName) -> None:
        asked: set[ReplicaId] = set()
        while True:
            rings = self._bell.rings
            for replica in list(self._picture.view.replicas.values()):
                if replica.model.name == model and replica.replica not in asked:
                    asked.add(replica.replica)
                    await self._starts.unload(replica.replica, "its model is deleted")
            agreed = self._cluster.control.view().catalogue.replicas.values()
            if not any(each.deployment == model for each in agreed):
                return
            await self._bell.wait(rings)

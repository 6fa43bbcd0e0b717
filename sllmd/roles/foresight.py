"""The leader's look ahead: models that are likely to be asked for soon are lifted into DRAM where disks idle.

Owns: when each node was last given something to lift. What is lifted is ``scheduler.prefetch``'s decision,
from the arrivals that this leader has seen; a new leader begins to learn anew. Chances change with the clock,
so this is done now and then, not upon news.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import structlog

from sllmd.cluster.node import ClusterNode
from sllmd.core.errors import SllmdError
from sllmd.core.ids import NodeId
from sllmd.roles.orders import Order, Orders, Verb, Verdict, give_order
from sllmd.roles.picture import Picture
from sllmd.scheduler.prefetch import Prefetch, prefetch
from sllmd.scheduler.view import NodeView

REFUSED_SECONDS = 30.0
"""How long a node that would not lift what was chosen for it is left alone."""

_log = structlog.get_logger(__name__)


class Foresight:
    """Of one leader in one epoch."""

    def __init__(
        self, cluster: ClusterNode, orders: Orders, picture: Picture, alive: Callable[[], Collection[NodeId]]
    ) -> None:
        self._cluster = cluster
        self._orders = orders
        self._picture = picture
        self._alive = alive
        self._rests: dict[NodeId, float] = {}
        """Until when a node is given nothing: it lifts, or would not."""
        self._count = 0

    async def look_ahead(self, epoch: int) -> None:
        """One model for each node and round, for as long as this node leads."""
        settings, clock = self._picture.view.settings, asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(settings.prefetch_interval)
            for node in list(self._alive()):
                await asyncio.sleep(0)  # a thousand nodes take a second, and heartbeats must not wait for it
                known = self._picture.view.nodes.get(node)
                if known is None or self._rests.get(node, 0.0) > clock():
                    continue
                chance_min = settings.prefetch_chance_min
                found = prefetch(self._picture.view, known, clock(), chance_min=chance_min)
                if found is not None:
                    self._rests[node] = clock() + await self._order(epoch, known, found)

    async def _order(self, epoch: int, node: NodeView, found: Prefetch) -> float:
        """Have it lifted; for how long the node is left alone then."""
        self._count += 1
        digests = self._picture.digests
        going = tuple(digests[name] for name in found.evict if name in digests)
        load_seconds = self._picture.view.models[found.model].model.total_bytes / node.from_ssd.value
        order_id = f"lift {epoch}.{self._count}"
        order = Order(epoch, order_id, Verb.LIFT, found.model, digests[found.model], 0, going=going)
        try:
            answer = await give_order(self._cluster, self._orders, node.node, order)
        except SllmdError as error:
            _log.info("nothing lifted", node=node.name, model=found.model, reason=str(error))
            return REFUSED_SECONDS
        return 2 * load_seconds if answer.verdict is Verdict.ACCEPTED else REFUSED_SECONDS

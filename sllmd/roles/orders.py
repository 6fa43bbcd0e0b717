"""Orders of the leader to this node: load a model, unload it, lift it into memory ahead of need.

Owns: the method ``order``, and the greatest epoch seen, which is on disk before anything is done in it. The
node is the authority over its devices: an order is a wish, decided by this node's own admission.

1. an order of an older epoch is refused: its leader leads no more;
2. one that was answered is answered the same again, and not carried out twice;
3. one whose revision of the deployment's replica is older than one carried out here is refused;
4. one that this node's devices cannot hold, or have no room for now, is refused;
5. else it is begun; how it ends is told by the next report.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog

from sllmd.cluster.codec import Codec
from sllmd.cluster.control import ControlStore
from sllmd.cluster.node import ClusterNode
from sllmd.core.errors import ControlUnavailable, NotHere, ProtocolError, StoreError
from sllmd.core.ids import Digest, ModelName, NodeId
from sllmd.roles.agent import Agent
from sllmd.roles.library import Library
from sllmd.roles.lifts import Lifts
from sllmd.store.durable import replace_file, store_errors
from sllmd.telemetry.supervising import end_tasks
from sllmd.wire.rpc.methods import Caller, Methods

METHOD = "order"
ANSWERS_MAX = 4096
"""Answers remembered, so that an order sent twice is carried out once."""
ORDER_SECONDS = 5.0
"""For a node to answer; carrying it out takes longer."""
CLAIM_SECONDS = 3.0
"""For those whom a model is loaded for to come to its node: from then on it starts for them alone."""

_log = structlog.get_logger(__name__)


class Verb(StrEnum):
    """What is to be done with a model."""

    LOAD = "load"
    UNLOAD = "unload"
    LIFT = "lift"


class Verdict(StrEnum):
    """How an order was taken."""

    ACCEPTED = "accepted"
    STALE_EPOCH = "stale_epoch"
    STALE_REVISION = "stale_revision"
    CONFLICT = "conflict"
    """This node's devices have no room for it."""


@dataclass(frozen=True, slots=True)
class Order:
    """``revision`` is that of the replica's intent in the catalogue; 0 for a lift, which has none."""

    epoch: int
    order_id: str
    verb: Verb
    model: ModelName
    digest: Digest
    revision: int
    waits: bool = False
    """Of a load: somebody goes to make room for it, so the node shall wait for that as for any request."""
    stays: bool = False
    """Of a load: it goes on although no request waits for it."""
    going: tuple[Digest, ...] = ()
    """Of a lift: the checkpoints in memory whose place it may take."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``epoch``: the greatest that the node has seen."""

    verdict: Verdict
    reason: str
    epoch: int


_CODEC = Codec({1: Order, 2: Answer})


def pack_order(value: Order | Answer) -> bytes:
    """As it travels."""
    return _CODEC.pack(value)


def unpack_answer(packed: Any) -> Answer:
    """Raises ProtocolError."""
    answer = _unpack(packed)
    if not isinstance(answer, Answer):
        raise ProtocolError("an answer to an order that cannot be understood")
    return answer


def _unpack(packed: Any) -> Any:
    return _CODEC.unpack(packed) if isinstance(packed, bytes) else None


class Fence:
    """The greatest epoch seen in one cluster, kept on disk."""

    def __init__(self, path: Path, cluster_id: str) -> None:
        """Raises StoreError when the file cannot be read: without it, an old leader could not be told."""
        self._path = path
        self._cluster_id = cluster_id
        self.epoch = 0
        try:
            kept = json.loads(path.read_bytes())
            if kept["cluster"] == cluster_id:
                self.epoch = int(kept["epoch"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} cannot be read: {error}", hint="join the cluster anew") from error

    async def admit(self, epoch: int) -> bool:
        """Whether orders of ``epoch`` may be carried out; a newer one is on disk when this returns."""
        if epoch > self.epoch:
            await asyncio.to_thread(self._write, epoch)
            self.epoch = max(self.epoch, epoch)
        return epoch == self.epoch

    def _write(self, epoch: int) -> None:
        with store_errors("remember the cluster's epoch"):
            kept = {"cluster": self._cluster_id, "epoch": epoch}
            replace_file(self._path, json.dumps(kept).encode())


class Orders:
    """Takes orders, one at a time; none before ``open``."""

    def __init__(self, agent: Agent, library: Library, lifts: Lifts) -> None:
        self._fence: Fence | None = None
        self._agent = agent
        self._library = library
        self._lifts = lifts
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._revisions: dict[ModelName, int] = {}
        self._one_at_a_time = asyncio.Lock()
        self._works: set[asyncio.Task[None]] = set()

    def open(self, fence: Fence) -> None:
        """Take orders from now on."""
        self._fence = fence

    def offer(self, methods: Methods) -> None:
        """Take orders of other nodes."""

        async def order(body: Any, _caller: Caller) -> bytes:
            given = _unpack(body)
            if not isinstance(given, Order):
                raise ProtocolError("an order that cannot be understood")
            return pack_order(await self.take(given))

        methods.unary(METHOD, order)

    async def fence(self, epoch: int) -> None:
        """Nothing of an older epoch is carried out from now on. Raises StoreError."""
        if self._fence is not None:
            async with self._one_at_a_time:
                await self._fence.admit(epoch)

    async def take(self, order: Order) -> Answer:
        """Decide, and begin what is accepted; numbers as in the module. Raises StoreError, NotHere."""
        fence = self._fence
        if fence is None:
            raise NotHere("this node has not joined yet")
        async with self._one_at_a_time:
            if not await fence.admit(order.epoch):  # 1
                reason = f"epoch {order.epoch} is over, {fence.epoch} has begun"
                return Answer(Verdict.STALE_EPOCH, reason, fence.epoch)
            known = self._answers.get(order.order_id)
            if known is not None:  # 2
                return known
            verdict, reason = await self._decide(order)
            answer = Answer(verdict, reason, fence.epoch)
            self._answers[order.order_id] = answer
            while len(self._answers) > ANSWERS_MAX:
                self._answers.popitem(last=False)
            _log.info("order", verb=order.verb, model=order.model, verdict=verdict, reason=reason)
            return answer

    async def _decide(self, order: Order) -> tuple[Verdict, str]:
        if order.verb is Verb.LIFT:
            return await self._decide_lift(order)
        newest = self._revisions.get(order.model, 0)
        if order.revision < newest:  # 3
            return Verdict.STALE_REVISION, f"revision {newest} was carried out"
        if order.verb is Verb.LOAD:
            checkpoint = await self._library.obtain_exactly(order.model, order.digest)
            missing = self._agent.missing_for(checkpoint, waits=order.waits)
            if missing is not None:  # 4
                return Verdict.CONFLICT, missing
            self._begin(self._load(order))  # 5
        else:
            self._begin(self._unload(order))
        self._revisions[order.model] = order.revision
        return Verdict.ACCEPTED, ""

    async def _decide_lift(self, order: Order) -> tuple[Verdict, str]:
        checkpoint = await self._library.obtain_exactly(order.model, order.digest)
        reason = self._lifts.refusal(checkpoint, order.going)
        if reason is not None:  # 4
            return Verdict.CONFLICT, reason
        self._begin(self._lifts.lift(checkpoint, order.going))  # 5
        return Verdict.ACCEPTED, ""

    async def _load(self, order: Order) -> None:
        checkpoint = await self._library.obtain_exactly(order.model, order.digest)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if order.stays else CLAIM_SECONDS):
                async with self._agent.hold(checkpoint, is_request=False):
                    pass

    async def _unload(self, order: Order) -> None:
        residence = self._agent.find(order.model, order.digest)
        if residence is not None:
            await self._agent.unload(residence.checkpoint, keep_dram=True)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._works.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.warning("order not carried out", reason=str(task.exception()))

    async def close(self) -> None:
        """Give up what is under way."""
        await end_tasks(*self._works)


async def give_order(cluster: ClusterNode, here: Orders, node: NodeId, order: Order) -> Answer:
    """Have ``node`` do it. Raises ControlUnavailable when this node does not lead in the order's epoch."""
    _check_leads(cluster.control, order.epoch)
    if node == cluster.identity.node:
        return await here.take(order)
    packed = await cluster.call(node, METHOD, pack_order(order), deadline_seconds=ORDER_SECONDS)
    return unpack_answer(packed)


def _check_leads(control: ControlStore, epoch: int) -> None:
    leadership = control.leadership()
    if not leadership.is_me or leadership.epoch != epoch:
        raise ControlUnavailable(f"this node does not lead in epoch {epoch}", retry_after_seconds=1.0)

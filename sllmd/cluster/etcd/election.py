"""Who leads: one seat in etcd, on a lease, and the local clock that ends a term before the lease can.

1. A seat that is empty is taken by whoever creates its key first; its ``create_revision`` is the epoch.
2. The new leader has ``EpochBegin`` agreed on. Only then does it lead.
3. It renews its lease; a term lasts until a tenth less than the lease's time after the last renewal was
   *asked for*. What ends a term (no renewal, the seat gone, a refused epoch, handing over) ends it for good.

A renewal counts only if a linearizable read in the same raft term finds the seat still taken by us: an etcd
leader that was replaced and does not know it yet renews leases that its successor lets expire.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from sllmd.cluster.catalogue.commands import Body, EpochBegin
from sllmd.cluster.catalogue.results import Done, Result
from sllmd.cluster.control import Leadership
from sllmd.cluster.etcd.failures import NOT_FOUND, EtcdAway, EtcdRefused
from sllmd.cluster.etcd.gateway import Gateway
from sllmd.cluster.etcd.keys import Keys
from sllmd.cluster.etcd.log import Seat
from sllmd.cluster.etcd.requests import created, get, look, put, read_ended, read_page, txn
from sllmd.cluster.etcd.settings import EtcdSettings
from sllmd.core.errors import ControlUnavailable, OutcomeUnknown
from sllmd.core.ids import NodeId
from sllmd.telemetry.supervising import end_tasks

MARGIN = 0.1
"""Part of a lease's time that its holder does not use: two clocks' rates, and what is under way."""
RENEWALS_PER_LEASE = 5
JITTER_SECONDS = 0.2
"""Nodes stand after a random time up to this, or all of them would ask for leases at once."""
INCARNATION_SHIFT = 48
"""Revisions stay below: 89 years at 100,000 changes per second."""

Propose = Callable[[Body], Awaitable[Result]]

_log = structlog.get_logger(__name__)


def now() -> float:
    """Seconds that go on while the machine is suspended: a lease runs out meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True, eq=False)
class Term:
    """One stay in the seat."""

    epoch: int
    seat_revision: int
    lease: int
    lease_seconds: float
    valid_until: float
    begun: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def leads(self) -> bool:
        """By the clock of this moment."""
        return self.begun and not self.ended.is_set() and now() < self.valid_until


class Election:
    """This node's part in it. ``run`` for ever in a task; ``resign`` when it ends."""

    def __init__(
        self,
        node: NodeId,
        gateway: Gateway,
        keys: Keys,
        settings: EtcdSettings,
        propose: Propose,
        on_change: Callable[[], None],
    ) -> None:
        self._node = node
        self._gateway = gateway
        self._keys = keys
        self._settings = settings
        self._propose = propose
        self._on_change = on_change
        self._seat: Seat | None = None
        self._known = False
        """Whether etcd was heard at all: an unknown seat is not an empty one."""
        self._epoch = 0
        self._term: Term | None = None
        self._seat_moved = asyncio.Event()

    @property
    def term(self) -> Term | None:
        """The term in which this node leads just now."""
        term = self._term
        return term if term is not None and term.leads else None

    def leadership(self) -> Leadership:
        """By the clock of this moment."""
        term = self.term
        if term is not None:
            return Leadership(term.epoch, self._node, is_me=True)
        seat = self._seat
        over = seat is not None and seat.node == self._node and (self._term is None or self._term.begun)
        return Leadership(self._epoch, None if seat is None or over else seat.node, is_me=False)

    def seat_changed(self, seat: Seat | None, revision: int) -> None:
        """The log read who sits in the seat as of a revision; it may lag behind our taking it."""
        self._seat, self._known = seat, True
        if seat is not None:
            self._epoch = max(self._epoch, self._epoch_of(seat.revision))
        term = self._term
        sits = seat is not None and term is not None and seat.revision == term.seat_revision
        if term is not None and revision > term.seat_revision and not sits:
            term.ended.set()
        self._seat_moved.set()
        self._seat_moved = asyncio.Event()
        self._on_change()

    async def run(self) -> None:
        """Stand whenever the seat is empty, lead whenever it is ours."""
        while True:
            while not self._known or self._seat is not None:
                await self._seat_moved.wait()
            await asyncio.sleep(random.uniform(0, JITTER_SECONDS))
            if self._seat is not None:
                continue
            try:
                term = await self._stand()
            except (EtcdAway, EtcdRefused) as error:
                _log.info("could not stand for leader", cause=error.message)
                await asyncio.sleep(self._settings.retry_seconds)
                continue
            if term is not None:
                await self._lead(term)
            else:
                await self._seat_moves(self._settings.retry_seconds)

    async def hand_over(self) -> bool:
        """End the term, and whether another node took the seat within ``hand_over_seconds``."""
        term = self.term
        if term is None:
            return False
        term.ended.set()
        self._on_change()
        limit_seconds = self._settings.hand_over_seconds + self._settings.request_seconds
        seat = await self._next_seat(term, limit_seconds)
        return seat is not None and seat.node != self._node

    async def _stand(self) -> Term | None:
        """Try to take the seat. None: another node has it. Raises EtcdAway, EtcdRefused."""
        asked_at = now()
        wanted = {"TTL": str(round(self._settings.lease_seconds))}
        granted = await self._gateway.call("/v3/lease/grant", wanted)
        lease, lease_seconds = int(granted["ID"]), float(granted["TTL"])
        valid_until = asked_at + lease_seconds * (1 - MARGIN)
        take = txn(
            [created(self._keys.leader, 0)],
            [put(self._keys.leader, self._node.encode(), lease=lease)],
            [look(self._keys.leader)],
        )
        while now() < valid_until:
            try:
                answer = read_ended(await self._gateway.call("/v3/kv/txn", take))
            except EtcdAway:
                await asyncio.sleep(self._settings.retry_seconds)
                continue
            if answer.held:
                return self._term_of(answer.revision, lease, lease_seconds, valid_until)
            found = answer.pages[0].only
            if found is not None and found.lease == lease:  # an earlier attempt had arrived
                return self._term_of(found.create_revision, lease, lease_seconds, valid_until)
            if found is not None:
                break
        await self._revoke(lease)
        return None

    def _term_of(self, revision: int, lease: int, lease_seconds: float, valid_until: float) -> Term:
        return Term(self._epoch_of(revision), revision, lease, lease_seconds, valid_until)

    def _epoch_of(self, revision: int) -> int:
        return (self._settings.incarnation << INCARNATION_SHIFT) | revision

    async def _lead(self, term: Term) -> None:
        self._term = term
        self._epoch = max(self._epoch, term.epoch)
        helpers = [asyncio.create_task(self._begin(term)), asyncio.create_task(self._renew(term))]
        try:
            while not term.ended.is_set() and now() < term.valid_until:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(term.valid_until - now()):
                        await term.ended.wait()
        finally:
            self._term = None
            self._on_change()
            await end_tasks(*helpers)
        _log.info("leads no more", epoch=term.epoch)
        await self._revoke(term.lease)
        await self._next_seat(term, self._settings.hand_over_seconds)  # let others go first

    async def _next_seat(self, term: Term, limit_seconds: float) -> Seat | None:
        """Who sits in the seat after a term; None: nobody within the time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                while self._seat is None or self._seat.revision <= term.seat_revision:
                    await self._seat_moved.wait()
                return self._seat
        return None

    async def _seat_moves(self, limit_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                await self._seat_moved.wait()

    async def _begin(self, term: Term) -> None:
        """Have the epoch agreed on; from then on this node leads."""
        while not term.ended.is_set():
            try:
                result = await self._propose(EpochBegin(term.epoch))
            except (ControlUnavailable, OutcomeUnknown) as error:
                _log.info("the epoch could not begin yet", epoch=term.epoch, cause=error.message)
                await asyncio.sleep(self._settings.retry_seconds)
                continue
            if isinstance(result, Done):
                term.begun = True
                _log.info("leads", epoch=term.epoch)
                self._on_change()
            else:
                _log.error(
                    "an epoch was refused: is [cluster.etcd] incarnation the same on all nodes, and was it"
                    " raised after etcd was restored?",
                    epoch=term.epoch,
                    cause=str(result),
                )
                term.ended.set()
            return

    async def _renew(self, term: Term) -> None:
        renewed = True
        while not term.ended.is_set():
            pause_seconds = term.lease_seconds / RENEWALS_PER_LEASE
            await asyncio.sleep(pause_seconds if renewed else self._settings.retry_seconds)
            asked_at = now()
            try:
                renewed = await self._renewed(term)
            except (EtcdAway, EtcdRefused) as error:
                if isinstance(error, EtcdRefused) and error.grpc == NOT_FOUND:
                    term.ended.set()
                _log.info("the leader's lease was not renewed", cause=error.message)
                renewed = False
            if renewed:
                term.valid_until = max(term.valid_until, asked_at + term.lease_seconds * (1 - MARGIN))

    async def _renewed(self, term: Term) -> bool:
        """Whether the lease runs anew, for certain: see above."""
        try_seconds = term.lease_seconds / RENEWALS_PER_LEASE
        asked = {"ID": str(term.lease)}
        answer = await self._gateway.call("/v3/lease/keepalive", asked, try_seconds=try_seconds)
        kept = answer["result"]
        if int(kept.get("TTL", 0)) <= 0:
            term.ended.set()
            return False
        request = get(self._keys.leader)
        seat = read_page(await self._gateway.call("/v3/kv/range", request, try_seconds=try_seconds))
        if seat.only is None or seat.only.create_revision != term.seat_revision:
            term.ended.set()
            return False
        return seat.raft_term == int(kept["header"].get("raft_term", 0))

    async def _revoke(self, lease: int) -> None:
        """So that the next need not wait for the lease to run out, which it does otherwise."""
        with contextlib.suppress(EtcdAway, EtcdRefused):
            await self._gateway.call("/v3/lease/revoke", {"ID": str(lease)})

    async def resign(self) -> None:
        """Give the seat back at the end of this node's part; ``run`` has been cancelled."""
        seat, self._term = self._seat, None
        self._on_change()
        if seat is not None and seat.node == self._node:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.request_seconds):
                    await self._revoke(seat.lease)

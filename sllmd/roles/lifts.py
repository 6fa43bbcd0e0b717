"""Checkpoints that are lifted from this node's SSD into DRAM before anybody asks, as the leader orders.

Owns: one lift at a time. Invariants: it takes free memory, and that of idle copies which the order names, no
more; whoever starts a replica here ends it, unless that is of the same bytes; what an operator took out of
memory is not lifted before somebody has asked for it again. What was lifted is a copy like any other: it goes
when its memory is needed.
"""

from __future__ import annotations

from collections.abc import Collection

import structlog

from sllmd.core.errors import SllmdError
from sllmd.core.ids import Digest
from sllmd.loader.tier import DramTier, Lease
from sllmd.roles.admission import ReplicaState
from sllmd.roles.agent import Agent
from sllmd.roles.residence import Residence
from sllmd.roles.residences import ReplicaChange
from sllmd.store.checkpoint import Checkpoint

_log = structlog.get_logger(__name__)


class Lifts:
    """See the module."""

    def __init__(self, agent: Agent, tier: DramTier) -> None:
        self._agent = agent
        self._tier = tier
        self._lease: Lease | None = None
        agent.observers.append(self._on_replica)

    def refusal(self, checkpoint: Checkpoint, going: Collection[Digest]) -> str | None:
        """Why it is not lifted now, in the place of ``going`` if need be; None: it can be."""
        if self._lease is not None:
            return "another model is being lifted"
        if any(each.state is ReplicaState.STARTING for each in self._agent.residences()):
            return "a model is starting"
        if checkpoint.manifest.digest in self._agent.put_down:
            return "it was unloaded on purpose"
        if self._tier.where(checkpoint) != "ssd":
            return "it is not on this node's SSD alone"
        copies = self._tier.stats().copies
        freed_bytes = sum(each.memory_bytes for each in copies if each.digest in going and not each.leases)
        if self._tier.slab_bytes_needed(checkpoint) > self._tier.room_bytes + freed_bytes:
            return "there is no room for it in memory"
        return None

    async def lift(self, checkpoint: Checkpoint, going: Collection[Digest]) -> None:
        """Do it; quietly not, if something has come between."""
        reason = self.refusal(checkpoint, going)
        if reason is not None:
            _log.info("not lifted", model=checkpoint.name, reason=reason)
            return
        for digest in going:
            if self._tier.slab_bytes_needed(checkpoint) > self._tier.room_bytes:
                self._tier.evict(digest)
        try:
            self._lease = lease = self._tier.acquire(checkpoint)
        except SllmdError as error:
            _log.info("not lifted", model=checkpoint.name, reason=str(error))
            return
        try:
            report = await lease.loaded()
            _log.info("lifted ahead of need", model=checkpoint.name, seconds=round(report.seconds, 3))
        except SllmdError as error:
            _log.info("not lifted", model=checkpoint.name, reason=str(error))
        finally:
            lease.release()
            if self._lease is lease:  # else it was ended, and another one may have begun
                self._lease = None

    def _on_replica(self, residence: Residence, change: ReplicaChange, _reason: str | None) -> None:
        """Somebody waits for a load: the lift is in its way."""
        lease = self._lease
        if change == "starting" and lease is not None and lease.manifest.digest != residence.need.digest:
            lease.release()
            self._lease = None

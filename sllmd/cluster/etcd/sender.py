"""Gets batches into etcd's order, one after another, each sent until it is there."""

from __future__ import annotations

import asyncio

import structlog

from sllmd.cluster.etcd.failures import EtcdAway, EtcdRefused
from sllmd.cluster.etcd.gateway import Gateway
from sllmd.cluster.etcd.keys import Keys
from sllmd.cluster.etcd.proposals import Batch, Proposals
from sllmd.cluster.etcd.requests import created, put, txn
from sllmd.cluster.etcd.settings import EtcdSettings

_log = structlog.get_logger(__name__)


class Sender:
    """What waits while a batch is on its way goes with the next: the busier, the larger the batches."""

    def __init__(self, gateway: Gateway, keys: Keys, settings: EtcdSettings, proposals: Proposals) -> None:
        self.last_cause = "etcd was not asked yet"
        """Why the last attempt failed."""
        self._gateway = gateway
        self._keys = keys
        self._settings = settings
        self._proposals = proposals

    async def run(self) -> None:
        """Send for ever."""
        while True:
            await self._deliver(await self._proposals.next_batch())

    async def _deliver(self, batch: Batch) -> None:
        """Until it is in the order, nobody waits for it, or it is certain that it was not begun."""
        steps = [put(batch.key, batch.value), put(self._keys.tip, b"")]
        request = txn([created(batch.key, 0)], steps)
        in_doubt = False
        while batch.wanted:
            try:
                await self._gateway.call("/v3/kv/txn", request)
            except (EtcdAway, EtcdRefused) as error:
                self.last_cause = error.message
                in_doubt = in_doubt or error.in_doubt
                if not in_doubt:
                    self._proposals.put_back(batch)
                await asyncio.sleep(self._settings.retry_seconds)
                if not in_doubt:
                    return
            else:
                return
        self._proposals.drop(batch)

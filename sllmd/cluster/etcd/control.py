"""``ControlStore`` over an external etcd: introduces the parts to each other and keeps them running."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from pathlib import Path
from typing import Self

from sllmd.cluster.catalogue import Catalogue
from sllmd.cluster.catalogue.commands import Body
from sllmd.cluster.catalogue.results import Result
from sllmd.cluster.control import Latest, Leadership, View
from sllmd.cluster.etcd.election import Election
from sllmd.cluster.etcd.failures import RETRY_AFTER_SECONDS
from sllmd.cluster.etcd.gateway import Gateway
from sllmd.cluster.etcd.keys import Keys
from sllmd.cluster.etcd.log import Log, Seat
from sllmd.cluster.etcd.memory import Memory
from sllmd.cluster.etcd.proposals import Proposals
from sllmd.cluster.etcd.sender import Sender
from sllmd.cluster.etcd.settings import EtcdSettings
from sllmd.cluster.etcd.snapshots import Snapshots
from sllmd.core.errors import ControlUnavailable, OutcomeUnknown
from sllmd.core.ids import NodeId
from sllmd.telemetry.supervising import end_tasks, keep_running


class EtcdControl:
    """One node's side of it. Make it with ``start``; ``close`` when done."""

    def __init__(
        self, node: NodeId, cluster_id: str, settings: EtcdSettings, gateway: Gateway, memory: Path | None
    ) -> None:
        keys = self._keys = Keys(f"{settings.prefix}/{cluster_id}")
        self._settings = settings
        self._gateway = gateway
        self._proposals = Proposals(keys, node)
        self._log = Log(gateway, keys, settings, self)
        self._memory = Memory(memory, cluster_id, settings)
        self._sender = Sender(gateway, keys, settings, self._proposals)
        self._election = Election(node, gateway, keys, settings, self.propose, self._publish_leadership)
        self._snapshots = Snapshots(gateway, keys, settings, self._log, self._election)
        self._views: weakref.WeakSet[Latest[View]] = weakref.WeakSet()
        self._leaderships: weakref.WeakSet[Latest[Leadership]] = weakref.WeakSet()
        self._published = self._election.leadership()
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls, *, node: NodeId, cluster_id: str, settings: EtcdSettings, memory: Path | None = None
    ) -> Self:
        """Take part. An etcd that does not answer is waited for in the background, from what ``memory``, a
        file of this node's, has kept.

        Raises ConfigError for what waiting does not help: files, passwords, certificates, other servers.
        """
        gateway = Gateway.open(settings)
        try:
            control = cls(node, cluster_id, settings, gateway, memory)
            control._log.recall(await asyncio.to_thread(control._memory.read))
            answers = await gateway.check(control._keys.tip)
        except BaseException:
            await gateway.close()
            raise
        control._tasks = [
            keep_running(control._log.run),
            keep_running(control._log.pulse),
            keep_running(control._sender.run),
            keep_running(control._election.run),
            keep_running(control._snapshots.run),
            keep_running(control._memory.run),
        ]
        try:
            if answers:
                with contextlib.suppress(ControlUnavailable):
                    await control.read()  # so that the first view is not that of an empty cluster
        except BaseException:  # whoever started it has given up
            await control.close()
            raise
        return control

    def view(self) -> View:
        """See ``ControlStore``."""
        return View(self._log.catalogue, self._log.position, self._log.age_seconds)

    def leadership(self) -> Leadership:
        """See ``ControlStore``."""
        return self._election.leadership()

    def views(self) -> Latest[View]:
        """See ``ControlStore``."""
        latest: Latest[View] = Latest()
        self._views.add(latest)
        return latest

    def leaderships(self) -> Latest[Leadership]:
        """See ``ControlStore``."""
        latest: Latest[Leadership] = Latest()
        self._leaderships.add(latest)
        return latest

    async def read(self) -> Catalogue:
        """See ``ControlStore``."""
        self._check_open()
        try:
            async with asyncio.timeout(self._settings.read_seconds):
                await self._log.confirm()
        except TimeoutError as error:
            message = "what etcd has agreed on did not arrive in time"
            raise ControlUnavailable(message, retry_after_seconds=RETRY_AFTER_SECONDS) from error
        return self._log.catalogue

    async def propose(self, body: Body, *, epoch: int | None = None) -> Result:
        """See ``ControlStore``. Raises InvalidRequest for a command that is too large for etcd, too."""
        self._check_open()
        proposal = self._proposals.submit(body, epoch)
        try:
            async with asyncio.timeout(self._settings.propose_seconds):
                return await proposal.outcome
        except TimeoutError as error:
            cause = self._sender.last_cause
            if proposal.begun:
                raise OutcomeUnknown(f"no result came from etcd in time; {cause}") from error
            raise ControlUnavailable(cause, retry_after_seconds=RETRY_AFTER_SECONDS) from error
        finally:
            self._proposals.leave(proposal)

    async def hand_over(self) -> bool:
        """See ``ControlStore``."""
        return await self._election.hand_over()

    async def close(self) -> None:
        """See ``ControlStore``. Gives the seat back; what waits ends as unavailable or unknown."""
        if self._closed:
            return
        self._closed = True
        await end_tasks(*self._tasks)
        self._proposals.fail("this node stops")
        await self._log.close()
        await self._memory.write()
        await self._election.resign()
        await self._gateway.close()

    def batch_applied(self, name: bytes, results: list[Result]) -> None:
        """The log's: match results with our proposals."""
        self._proposals.applied(name, results)

    def restored(self, catalogue: Catalogue) -> None:
        """The log's: some of our proposals may be in there."""
        self._proposals.restored(catalogue)

    def seat_changed(self, seat: Seat | None, revision: int) -> None:
        """The log's: who leads."""
        self._election.seat_changed(seat, revision)

    def moved(self) -> None:
        """The log's: tell whoever watches."""
        self._snapshots.wake()
        view = self.view()
        self._memory.wake(self._log.newest)
        for latest in self._views:
            latest.put(view)

    def _publish_leadership(self) -> None:
        leadership = self._election.leadership()
        if leadership == self._published:
            return
        self._published = leadership
        self._snapshots.wake()
        for latest in self._leaderships:
            latest.put(leadership)

    def _check_open(self) -> None:
        if self._closed:
            raise ControlUnavailable("this node stops", retry_after_seconds=RETRY_AFTER_SECONDS)

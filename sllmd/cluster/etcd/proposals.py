"""Commands of this node on their way: numbered, gathered into batches, matched with their results.

A client number is asked for with the first command, and again should the catalogue have forgotten it. Number
and sequence make a command that arrives twice harmless, so that a batch is sent until it is in the order.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from dataclasses import dataclass, field

from sllmd.cluster.catalogue import Catalogue, Command, pack_command
from sllmd.cluster.catalogue.commands import BODIES, Body, ClientOpen
from sllmd.cluster.catalogue.results import Denied, Done, Reason, Result
from sllmd.cluster.catalogue.state import OPEN_MAX
from sllmd.cluster.codec import pack
from sllmd.cluster.etcd.failures import RETRY_AFTER_SECONDS
from sllmd.cluster.etcd.keys import Keys, pack_batch
from sllmd.core.errors import ControlUnavailable, InvalidRequest, OutcomeUnknown, SllmdError
from sllmd.core.units import KIB, MIB

COMMAND_BYTES_MAX = 1 * MIB
"""etcd refuses requests above 1.5 MiB."""
BATCH_BYTES_MAX = 256 * KIB
"""A batch takes no more commands beyond it."""
BATCH_COMMANDS_MAX = 256
"""Commands of one batch are applied without a pause: some milliseconds."""
QUEUE_MAX = 4_096
"""Commands that wait; more are refused, or an outage of etcd would fill the memory."""


@dataclass(slots=True, eq=False)
class Proposal:
    """One command on its way."""

    body: Body
    epoch: int | None
    outcome: asyncio.Future[Result]
    seq: int | None = None
    begun: bool = False
    """It may be in the order already."""


@dataclass(slots=True, eq=False)
class Batch:
    """Commands under one key: the same bytes however often they are sent."""

    key: bytes
    value: bytes
    client: int
    proposals: tuple[Proposal, ...]
    """Empty when it opens a client."""
    label: str = ""

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for it."""
        return not self.proposals or any(not one.outcome.done() for one in self.proposals)


@dataclass(slots=True)
class Proposals:
    """All of this node's. Belongs to one event loop."""

    keys: Keys
    label: str
    _client: int | None = None
    _next_seq: int = 1
    _queue: deque[Proposal] = field(default_factory=deque)
    _open: dict[int, Proposal] = field(default_factory=dict)
    """Numbered and not answered, in the order of their numbers."""
    _sent: dict[bytes, Batch] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def submit(self, body: Body, epoch: int | None) -> Proposal:
        """Queue a command. Raises ControlUnavailable: too many wait; InvalidRequest: it is too large."""
        size_bytes = len(pack(BODIES.encode(body)))
        if size_bytes > COMMAND_BYTES_MAX:
            raise InvalidRequest(f"a command of {size_bytes} bytes; etcd takes {COMMAND_BYTES_MAX}")
        if len(self._queue) >= QUEUE_MAX:
            message = f"{QUEUE_MAX} commands wait for etcd already"
            raise ControlUnavailable(message, retry_after_seconds=RETRY_AFTER_SECONDS)
        proposal = Proposal(body, epoch, asyncio.get_running_loop().create_future())
        self._queue.append(proposal)
        self._changed.set()
        return proposal

    def leave(self, proposal: Proposal) -> None:
        """Nobody waits for it any more: it is not sent if it has not been."""
        proposal.outcome.cancel()
        self._close(proposal)
        if not proposal.begun and proposal in self._queue:
            self._queue.remove(proposal)

    async def next_batch(self) -> Batch:
        """The next to send, once there is one. Its commands count as begun until ``put_back``."""
        while True:
            self._changed.clear()
            batch = self._make_batch()
            if batch is not None:
                self._sent[batch.key] = batch
                return batch
            await self._changed.wait()

    def put_back(self, batch: Batch) -> None:
        """It was certainly not carried out, and will not be."""
        del self._sent[batch.key]
        for proposal in reversed(batch.proposals):
            proposal.begun = False
            if not proposal.outcome.done():
                self._queue.appendleft(proposal)
        self._changed.set()

    def drop(self, batch: Batch) -> None:
        """Nobody waits for it any more; it may be carried out all the same."""
        self._sent.pop(batch.key, None)

    def applied(self, key: bytes, results: list[Result]) -> None:
        """A batch, perhaps one of ours, was carried out."""
        batch = self._sent.pop(key, None)
        if batch is None:
            return
        if not batch.proposals:
            match results:
                case [Done(revision)]:
                    self._client = revision
        elif any(_forgotten(result) for result in results):
            if self._client == batch.client:
                self._client = None
            self._sent[key] = batch
            self.put_back(batch)
            for proposal in batch.proposals:
                self._close(proposal)
                proposal.seq = None
        else:
            for proposal, result in zip(batch.proposals, results, strict=True):
                self._answer(proposal, result)
        self._changed.set()

    def restored(self, catalogue: Catalogue) -> None:
        """Batches may have been carried out unseen: the catalogue's memory of clients tells."""
        for batch in list(self._sent.values()):
            if not batch.proposals:
                self._find_client(catalogue, batch)
                continue
            self._find_results(catalogue, batch)
        if self._client is not None and str(self._client) not in catalogue.clients:
            self._client = None
        self._changed.set()

    def fail(self, reason: str) -> None:
        """Nothing will be sent any more."""
        for proposal in [*self._queue, *self._open.values()]:
            error: SllmdError = ControlUnavailable(reason, retry_after_seconds=RETRY_AFTER_SECONDS)
            self._answer(proposal, OutcomeUnknown(reason) if proposal.begun else error)
        self._queue.clear()

    def _make_batch(self) -> Batch | None:
        while self._queue and self._queue[0].outcome.done():
            self._queue.popleft()
        if not self._queue:
            return None
        if self._client is None:
            return self._opening()
        taken: list[Proposal] = []
        commands: list[bytes] = []
        size_bytes = 0
        while self._queue and len(taken) < BATCH_COMMANDS_MAX and size_bytes < BATCH_BYTES_MAX:
            proposal = self._queue[0]
            if not proposal.outcome.done():
                if not self._number(proposal):
                    break
                commands.append(pack_command(self._command(proposal)))
                size_bytes += len(commands[-1])
                taken.append(proposal)
                proposal.begun = True
            self._queue.popleft()
        if not taken:
            return None
        name = f"{self._client}-{taken[0].seq:020d}-{secrets.token_hex(4)}"
        return Batch(self.keys.command(name), pack_batch(commands), self._client, tuple(taken))

    def _opening(self) -> Batch | None:
        if any(not batch.proposals for batch in self._sent.values()):
            return None
        label = f"{self.label}/{secrets.token_hex(8)}"
        value = pack_batch([pack_command(Command(ClientOpen(label)))])
        return Batch(self.keys.command(f"0-{secrets.token_hex(8)}"), value, 0, (), label)

    def _number(self, proposal: Proposal) -> bool:
        if proposal.seq is None:
            if self._next_seq - self._answered_below() >= OPEN_MAX:
                return False
            proposal.seq = self._next_seq
            self._next_seq += 1
        self._open[proposal.seq] = proposal
        return True

    def _answered_below(self) -> int:
        return next(iter(self._open), self._next_seq)

    def _command(self, proposal: Proposal) -> Command:
        assert self._client is not None
        assert proposal.seq is not None
        return Command(proposal.body, self._client, proposal.seq, self._answered_below(), proposal.epoch)

    def _find_client(self, catalogue: Catalogue, batch: Batch) -> None:
        for number, client in catalogue.clients.items():
            if client.label == batch.label:
                self._client = int(number)
                del self._sent[batch.key]
                return

    def _find_results(self, catalogue: Catalogue, batch: Batch) -> None:
        client = catalogue.clients.get(str(batch.client))
        results = client.results if client is not None else {}
        if client is not None and not any(one.seq in results for one in batch.proposals):
            return  # not yet carried out
        del self._sent[batch.key]
        for proposal in batch.proposals:
            assert proposal.seq is not None
            found = results.get(proposal.seq)
            self._answer(proposal, found or OutcomeUnknown("the cluster has forgotten this command"))

    def _answer(self, proposal: Proposal, outcome: Result | SllmdError) -> None:
        self._close(proposal)
        if proposal.outcome.done():
            return
        if isinstance(outcome, SllmdError):
            proposal.outcome.set_exception(outcome)
        else:
            proposal.outcome.set_result(outcome)

    def _close(self, proposal: Proposal) -> None:
        if proposal.seq is not None and self._open.get(proposal.seq) is proposal:
            del self._open[proposal.seq]
            self._changed.set()


def _forgotten(result: Result) -> bool:
    return isinstance(result, Denied) and result.reason is Reason.UNKNOWN_CLIENT

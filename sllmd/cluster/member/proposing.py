"""This node's own proposals, from being asked for to their answers.

Each has a number under one client of the catalogue, and keeps it however often it is sent: the catalogue
carries it out once. Its answer is found where every answer is found, in the log as it is applied here; so
whoever gets one sees its effect, too. Those of one turn of the loop travel together.

1. Nothing is sent twice while it may still be answered: only a new leader, a broken connection or a refusal
   makes it go again.
2. The first time that a command stands in the log is the time that counts. So "unknown client" there means
   that it was not carried out, and a new client may try again; unless a snapshot hid that part of the log.
3. When time is up, what was never begun is ``ControlUnavailable``, everything else ``OutcomeUnknown``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass

from sllmd.cluster.catalogue import Catalogue, pack_command
from sllmd.cluster.catalogue.commands import Body, ClientOpen, Command
from sllmd.cluster.catalogue.results import Denied, Done, Reason, Result
from sllmd.cluster.catalogue.state import OPEN_MAX
from sllmd.cluster.member.settings import ControlSettings
from sllmd.cluster.raft.events import Refusal
from sllmd.core.errors import (
    BusyError,
    ControlUnavailable,
    InvalidRequest,
    OutcomeUnknown,
    PeerUnreachable,
    SllmdError,
)
from sllmd.telemetry.supervising import end_tasks

WINDOW = OPEN_MAX // 2
"""Numbers given out beyond the oldest unanswered one: the catalogue remembers so many answers."""


@dataclass(eq=False, slots=True)
class _Proposal:
    """One command of this node's."""

    body: Body
    epoch: int | None
    deadline: float
    answer: asyncio.Future[Result]
    seq: int = 0
    data: bytes = b""
    in_doubt: int = 0
    """Times that it was sent and not refused: while there are any, it may stand in some log."""
    restores: int = 0
    """Snapshots taken over when it was first sent."""
    refusal: str = "no majority of the voters answered"
    """Why it did not get further yet."""


COMMAND_BYTES_MAX = 512 * 1024
"""One command: it must fit into every message and stream that carries entries."""
BATCH_BYTES = 1 << 20
"""Commands that travel together; well below what a frame may hold."""

Send = Callable[[Sequence[bytes]], Awaitable[Sequence[Refusal | None]]]


class Proposer:
    """Proposals of one life of a node. ``send`` gives commands to whoever leads; raises PeerError."""

    def __init__(
        self, label: str, send: Send, has_leader: Callable[[], bool], settings: ControlSettings
    ) -> None:
        """``label`` is of this life alone: by it the client's number is found."""
        self._loop = asyncio.get_running_loop()
        self._label = label
        self._send = send
        self._has_leader = has_leader
        self._settings = settings
        self._client: int | None = None
        self._opening = False
        self._next_seq = 1
        self._queued: dict[_Proposal, None] = {}
        """To be sent, in this order."""
        self._open: dict[int, _Proposal] = {}
        """Numbered and not answered, by number."""
        self._all: dict[_Proposal, None] = {}
        """In the order of their deadlines."""
        self._restores = 0
        self._flush_due = False
        self._retry: asyncio.TimerHandle | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._failure: str | None = None

    # --- what its owner asks ---

    async def propose(self, body: Body, epoch: int | None) -> Result:
        """See ``ControlStore.propose``."""
        if self._failure is not None:
            raise ControlUnavailable(self._failure, retry_after_seconds=self._settings.propose_seconds)
        if len(self._all) >= self._settings.proposals_max:
            message = f"{len(self._all)} changes of this node wait for an answer"
            raise ControlUnavailable(message, retry_after_seconds=self._settings.retry_seconds)
        deadline = self._loop.time() + self._settings.propose_seconds
        proposal = _Proposal(body, epoch, deadline, self._loop.create_future())
        self._all[proposal] = self._queued[proposal] = None
        self._flush_soon()
        if self._sweep is None:
            self._sweep = self._loop.call_at(deadline, self._time_is_up)
        return await proposal.answer

    def leader_changed(self) -> None:
        """Somebody else may lead now: what the former leader took may be lost."""
        self._opening = False
        for proposal in self._open.values():
            self._queued[proposal] = None
        self._flush_soon()

    def carried_out(self, command: Command, result: Result) -> None:
        """A command was applied here."""
        if command.client == 0:
            if isinstance(command.body, ClientOpen) and command.body.label == self._label:
                self._opened(result)
        elif command.client == self._client:
            proposal = self._open.get(command.seq)
            if proposal is None:
                return
            if isinstance(result, Denied) and result.reason is Reason.UNKNOWN_CLIENT:
                self._forgotten()
            else:
                self._done(proposal, result)

    def restored(self, catalogue: Catalogue) -> None:
        """The state jumped ahead: look for answers in the catalogue's memory of this client."""
        self._restores += 1
        if self._client is None:
            self._find_client(catalogue)
        memory = catalogue.clients.get(str(self._client))
        if memory is not None:
            for seq in [seq for seq in self._open if seq in memory.results]:
                self._done(self._open[seq], memory.results[seq])
        self.leader_changed()

    def fail(self, reason: str) -> None:
        """Nothing of this node's can be agreed on any more."""
        self._failure = reason
        for proposal in list(self._all):
            self._give_up(proposal)

    async def close(self) -> None:
        """Give up everything."""
        self.fail("this node is stopping")
        for timer in (self._sweep, self._retry):
            if timer is not None:
                timer.cancel()
        await end_tasks(*self._sending)

    # --- sending ---

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush_later(self) -> None:
        if self._retry is None:
            self._retry = self._loop.call_later(self._settings.retry_seconds, self._flush_again)

    def _flush_again(self) -> None:
        self._retry = None
        self._flush()

    def _flush(self) -> None:
        """Send what is queued, all together."""
        self._flush_due = False
        if not self._queued or not self._has_leader() or self._failure is not None:
            return
        if self._client is None:
            self._open_client()
            return
        batch: list[_Proposal] = []
        size_bytes = 0
        for proposal in [proposal for proposal in list(self._queued) if self._take(proposal)]:
            if batch and size_bytes + len(proposal.data) > BATCH_BYTES:
                self._begin(self._deliver(batch))
                batch, size_bytes = [], 0
            batch.append(proposal)
            size_bytes += len(proposal.data)
        if batch:
            self._begin(self._deliver(batch))

    def _open_client(self) -> None:
        if not self._opening:
            self._opening = True
            self._begin(self._ask_for_client())

    async def _ask_for_client(self) -> None:
        refusal: object = None
        try:
            (refusal,) = await self._send([pack_command(Command(ClientOpen(self._label)))])
        except SllmdError as error:
            refusal = error
        if refusal is not None:
            self._opening = False
            self._flush_later()

    def _take(self, proposal: _Proposal) -> bool:
        """Off the queue and numbered; False: nobody waits for it any more, or the window is full."""
        if proposal.answer.done() and not proposal.in_doubt:
            self._drop(proposal)
            return False
        if not proposal.seq and not self._number(proposal):
            return False
        del self._queued[proposal]
        return True

    def _number(self, proposal: _Proposal) -> bool:
        answered_below = next(iter(self._open), self._next_seq)
        if self._next_seq - answered_below >= WINDOW or self._client is None:
            return False
        command = Command(proposal.body, self._client, self._next_seq, answered_below, proposal.epoch)
        data = pack_command(command)
        if len(data) > COMMAND_BYTES_MAX:
            self._drop(proposal)
            message = f"a change of {len(data)} bytes is over the limit of {COMMAND_BYTES_MAX}"
            proposal.answer.set_exception(InvalidRequest(message))
            return False
        proposal.seq, proposal.data, proposal.restores = self._next_seq, data, self._restores
        self._next_seq += 1
        self._open[proposal.seq] = proposal
        return True

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _deliver(self, batch: list[_Proposal]) -> None:
        commands = [proposal.data for proposal in batch]
        for proposal in batch:
            proposal.in_doubt += 1
        try:
            refusals = await self._send(commands)
            reasons, refused = [None if one is None else _WORDS.get(one, str(one)) for one in refusals], True
        except SllmdError as error:
            reasons, refused = [error.message] * len(batch), _was_not_sent(error)
        for proposal, data, reason in zip(batch, commands, reasons, strict=True):
            if reason is not None and proposal.data is data and proposal in self._all:
                proposal.in_doubt -= refused
                proposal.refusal = reason
                self._queued[proposal] = None
        if self._queued:
            self._flush_later()

    # --- answers ---

    def _opened(self, result: Result) -> None:
        if self._client is None and isinstance(result, Done):
            self._client, self._opening = result.revision, False
            self._flush_soon()

    def _find_client(self, catalogue: Catalogue) -> None:
        for key, client in catalogue.clients.items():
            if client.label == self._label:
                self._client, self._opening = int(key), False

    def _forgotten(self) -> None:
        """The catalogue let this client's memory go: what is open was not carried out, as far as was seen."""
        self._client, self._label = None, f"{self._label}+"
        opened, self._open = list(self._open.values()), {}
        self._next_seq = 1
        for proposal in opened:
            if proposal.in_doubt and proposal.restores != self._restores:
                self._give_up(proposal)
                continue
            proposal.seq, proposal.in_doubt, proposal.data = 0, 0, b""
            self._queued[proposal] = None
        self._flush_soon()

    def _done(self, proposal: _Proposal, result: Result) -> None:
        self._drop(proposal)
        if not proposal.answer.done():
            proposal.answer.set_result(result)
        if self._queued:
            self._flush_soon()

    def _drop(self, proposal: _Proposal) -> None:
        self._all.pop(proposal, None)
        self._queued.pop(proposal, None)
        if self._open.get(proposal.seq) is proposal:
            del self._open[proposal.seq]

    def _give_up(self, proposal: _Proposal) -> None:
        self._drop(proposal)
        if proposal.answer.done():
            return
        reason = self._failure or proposal.refusal
        if proposal.in_doubt:
            message = f"a change was asked for and not answered: {reason}"
            hint = "look whether it took effect before you ask again"
            proposal.answer.set_exception(OutcomeUnknown(message, hint=hint))
        else:
            message = f"the cluster cannot agree just now: {reason}"
            retry = self._settings.propose_seconds
            proposal.answer.set_exception(ControlUnavailable(message, retry_after_seconds=retry))

    def _time_is_up(self) -> None:
        now = self._loop.time()
        self._sweep = None
        for proposal in list(self._all):
            if proposal.deadline > now:
                self._sweep = self._loop.call_at(proposal.deadline, self._time_is_up)
                break
            self._give_up(proposal)


def _was_not_sent(error: SllmdError) -> bool:
    return isinstance(error, BusyError) or (isinstance(error, PeerUnreachable) and not error.in_doubt)


_WORDS = {
    Refusal.NOT_LEADER: "nobody leads that this node knows of",
    Refusal.NO_LEADER: "nobody leads",
    Refusal.TRANSFERRING: "the leadership is changing hands",
    Refusal.BUSY: "the leader has more changes under way than it may",
    Refusal.INVALID: "the leader cannot read this change: it runs another release",
}

"""Agreement by this cluster's own raft, as the daemon uses it: ``ControlStore``.

A node keeps the log (some of those vote) or follows one that does. Proposals and reads work the same on both:
they go to whoever leads, and their answers are found here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Self
from weakref import WeakSet

import structlog

from sllmd.cluster.catalogue import Catalogue
from sllmd.cluster.catalogue.commands import Body
from sllmd.cluster.catalogue.results import Result
from sllmd.cluster.control import Latest, Leadership, View
from sllmd.cluster.journal import DirectoryFiles, JournalSettings
from sllmd.cluster.member.answering import Answering
from sllmd.cluster.member.disk import OpenDirectory
from sllmd.cluster.member.known import Known, Point
from sllmd.cluster.member.links import Connect, Links
from sllmd.cluster.member.proposing import Proposer
from sllmd.cluster.member.seat import Alive, Place, Seat, Sitter
from sllmd.cluster.member.settings import ControlSettings, VoterSettings
from sllmd.cluster.member.stewardship import Steward
from sllmd.cluster.raft import RaftSettings, RaftStatus
from sllmd.cluster.raft.entries import Membership
from sllmd.cluster.raft.events import Refusal
from sllmd.core.errors import ControlUnavailable, ProtocolError, SllmdError
from sllmd.core.ids import NodeId
from sllmd.telemetry.supervising import end_tasks, keep_running
from sllmd.wire.rpc.methods import Methods

_log = structlog.get_logger(__name__)


class RaftControl:
    """See the module and ``ControlStore``. Made by ``start``."""

    def __init__(
        self, place: Place, connect: Connect, alive: Alive, voters: VoterSettings, methods: Methods
    ) -> None:
        self._node = place.node
        self._settings = place.control
        self._alive = alive
        self._links = Links(connect, "raft.message")
        self._known = Known(lambda: self._seat.age_seconds)
        self._leadership = Leadership(0, None, is_me=False)
        self._leaderships: WeakSet[Latest[Leadership]] = WeakSet()
        label = f"{place.node}/{secrets.token_hex(8)}"
        self._proposer = Proposer(label, self._send, self._has_leader, place.control)
        sitter = Sitter(self._proposer.carried_out, self._restored, self._changed)
        self._seat = Seat(place, self._known, self._links, alive, sitter)
        self._steward = Steward(place.node, self._links, alive, voters, lambda: self._seat.shell)
        self._answering = Answering(self._seat, self._links, self._steward, methods)
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(
        cls,
        *,
        node: NodeId,
        directory: Path,
        methods: Methods,
        connect: Connect,
        alive: Alive,
        founding: Membership | None = None,
        settings: RaftSettings | None = None,
        journal_settings: JournalSettings | None = None,
        voter_settings: VoterSettings | None = None,
        control_settings: ControlSettings | None = None,
        open_files: OpenDirectory = DirectoryFiles,
    ) -> Self:
        """Take up where this node's journal ends; ``methods`` get ``raft.*`` and ``control.*``.

        ``founding``: where the journal is empty, these nodes found a cluster, the same on each of them. None:
        this node waits to be taken in. ``directory`` is the journal's own. Raises JournalCorrupt and
        JournalFailed: a node must not vote on half of what it promised.
        """
        place = Place(
            node,
            directory,
            settings or RaftSettings(),
            journal_settings or JournalSettings(),
            control_settings or ControlSettings(),
            open_files,
        )
        control = cls(place, connect, alive, voter_settings or VoterSettings(), methods)
        await control._seat.take(founding)
        control._tasks = [keep_running(part) for part in (control._seat.look_around, control._steward.run)]
        return control

    # --- what this node knows ---

    def view(self) -> View:
        """What this node knows now."""
        return self._known.view()

    def views(self) -> Latest[View]:
        """Every change of the catalogue from now on."""
        return self._known.views()

    def leadership(self) -> Leadership:
        """Who leads, as far as this node knows."""
        return self._leadership

    def leaderships(self) -> Latest[Leadership]:
        """Every change of the leadership from now on."""
        latest: Latest[Leadership] = Latest()
        self._leaderships.add(latest)
        return latest

    @property
    def membership(self) -> Membership:
        """Who votes and who listens, as far as this node knows; everybody else follows."""
        return self._seat.membership

    def status(self) -> RaftStatus | None:
        """What there is to see of raft on this node; None: it keeps no log."""
        return self._seat.shell.status() if self._seat.shell is not None else None

    @property
    def lost_reason(self) -> str | None:
        """Why this node agrees to nothing any more, since its disk failed; None: it does."""
        return self._seat.lost_reason

    # --- what it asks of the others ---

    async def propose(self, body: Body, *, epoch: int | None = None) -> Result:
        """See ``ControlStore.propose``."""
        return await self._proposer.propose(body, epoch)

    async def read(self) -> Catalogue:
        """See ``ControlStore.read``."""
        try:
            async with asyncio.timeout(self._settings.read_seconds):
                await self._known.reach(await self._point_to_read())
        except TimeoutError:
            raise ControlUnavailable(
                self._lost_words() or "nobody leads who could say what is newest",
                retry_after_seconds=self._settings.read_seconds,
            ) from None
        return self._known.catalogue

    async def hand_over(self) -> bool:
        """See ``ControlStore.hand_over``."""
        return await self._steward.hand_over()

    async def retire(self, *, deadline_seconds: float = 30.0) -> bool:
        """Stop being a member, once others can do without this node; whether that came true in time.

        A voter is replaced first where there is somebody, a leader hands over first. False at once where this
        node is alone, or where its disk failed: then it can hand over nothing.
        """
        seat = self._seat
        try:
            async with asyncio.timeout(deadline_seconds):
                while (shell := seat.shell) is not None:
                    is_alone = not seat.others() and seat.membership.everyone == (self._node,)
                    if is_alone or shell.lost_reason is not None:
                        return False
                    await self._ask_to_retire()
                    await shell.changed.wait(self._settings.beat_seconds)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop taking part."""
        await end_tasks(*self._tasks)
        await self._proposer.close()
        await self._seat.close()
        await self._links.close()

    # --- to whoever leads ---

    def _has_leader(self) -> bool:
        return self._leadership.leader is not None

    async def _send(self, commands: Sequence[bytes]) -> Sequence[Refusal | None]:
        leader, shell = self._leadership.leader, self._seat.shell
        if leader is None or (leader == self._node and shell is None):
            return [Refusal.NO_LEADER] * len(commands)
        if leader == self._node and shell is not None:
            return await shell.propose(commands)
        try:
            connection = await self._links.connection(leader)
        except SllmdError as error:
            message = f"the leader {leader} cannot be reached: {error.message}"
            retry_seconds = self._settings.retry_seconds
            raise ControlUnavailable(message, retry_after_seconds=retry_seconds) from error
        deadline_seconds = self._settings.beat_seconds
        reply = await connection.call("control.propose", tuple(commands), deadline_seconds=deadline_seconds)
        if not isinstance(reply, tuple) or len(reply) != len(commands):
            raise ProtocolError(f"no answer to proposals: {reply!r:.80}")
        try:
            return [None if word is None else Refusal(word) for word in reply]
        except ValueError as error:
            raise ProtocolError(f"the leader refuses for a reason of another release: {error}") from error

    async def _point_to_read(self) -> Point:
        """What a read that begins now must have seen."""
        while True:
            seat = self._seat
            if seat.shell is not None and seat.following is None:
                if seat.lost_reason is not None:
                    raise TimeoutError
                shell = seat.shell
                if await shell.read() is None:
                    return shell.term, shell.position
            else:
                point = await self._ask_for_point()
                if point is not None:
                    return point
            await asyncio.sleep(self._settings.retry_seconds)

    async def _ask_for_point(self) -> Point | None:
        leader = self._leadership.leader
        if leader is None or leader == self._node:
            return None
        deadline_seconds = self._settings.beat_seconds
        try:
            point = await self._links.call(leader, "control.read", None, deadline_seconds=deadline_seconds)
        except SllmdError as error:
            _log.debug("read refused", leader=leader, reason=str(error))
            return None
        match point:
            case (int(term), int(position)):
                return term, position
        raise ProtocolError(f"no point of the log: {point!r:.80}")

    async def _ask_to_retire(self) -> None:
        leader = self._leadership.leader
        if leader is None:
            return
        if leader == self._node:
            self._steward.retiring(self._node)
            return
        deadline_seconds = self._settings.beat_seconds
        try:
            await self._links.call(leader, "control.retire", None, deadline_seconds=deadline_seconds)
        except SllmdError as error:
            _log.info("the leader does not let this node go yet", reason=str(error))

    # --- what happens ---

    def _restored(self) -> None:
        self._proposer.restored(self._known.catalogue)

    def _changed(self) -> None:
        """Leadership, membership or the disk: look which."""
        before, now = self._leadership, self._seat.leadership
        if now.epoch < before.epoch:  # a new source that has not heard yet; what was known stays true
            now = Leadership(before.epoch, before.leader, is_me=False)
        if now != before:
            self._leadership = now
            for latest in self._leaderships:
                latest.put(now)
            if (now.epoch, now.leader) != (before.epoch, before.leader):
                self._proposer.leader_changed()
        lost = self._lost_words()
        if lost is not None:
            self._proposer.fail(lost)

    def _lost_words(self) -> str | None:
        reason = self._seat.lost_reason
        return None if reason is None else f"this node's journal failed: {reason}"

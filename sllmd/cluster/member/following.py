"""A node without a log: it follows the catalogue from any member, and from another when that one fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import structlog

from sllmd.cluster.catalogue import apply, apply_bytes, restore, unpack_command
from sllmd.cluster.catalogue.commands import Command
from sllmd.cluster.catalogue.results import Result
from sllmd.cluster.member.known import Known
from sllmd.cluster.member.links import Links
from sllmd.cluster.member.settings import ControlSettings
from sllmd.cluster.raft.entries import NOBODY, Membership
from sllmd.core.errors import PeerUnreachable, ProtocolError, SllmdError
from sllmd.core.ids import NodeId
from sllmd.telemetry.supervising import end_tasks, keep_running
from sllmd.wire.rpc.outgoing import ReplyStream

_log = structlog.get_logger(__name__)

SNAPSHOT_BYTES_MAX = 1 << 30
"""A catalogue beyond this is no catalogue."""


@dataclass(frozen=True, slots=True)
class Listener:
    """What following tells whoever follows."""

    carried_out: Callable[[Command, Result], None]
    restored: Callable[[], None]
    changed: Callable[[], None]


class Following:
    """Runs until it is closed."""

    def __init__(
        self,
        known: Known,
        links: Links,
        candidates: Callable[[], Iterable[NodeId]],
        settings: ControlSettings,
        listener: Listener,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._known = known
        self._links = links
        self._candidates = candidates
        self._settings = settings
        self._listener = listener
        self._catalogue, self._position, self._term = known.catalogue, known.position, known.term
        self._parts = bytearray()
        self._whole: tuple[int, int, bytes] | None = None
        """A snapshot that has come: position, term, bytes."""
        self._random = random.Random()
        self.epoch = 0
        self.leader: NodeId | None = None
        self.members: Membership = NOBODY
        self.source: NodeId | None = None
        """Whom it follows."""
        self._heard_at = float("-inf")
        self._stale_seconds = 0.0
        self._hints: list[NodeId] = []
        self._task = keep_running(self._run)

    @property
    def age_seconds(self) -> float:
        """Since the members last heard from whoever decides, as far as this node heard."""
        return self._loop.time() - self._heard_at + self._stale_seconds

    def stop(self) -> None:
        """Stop following; nothing is told any more."""
        self._task.cancel()

    async def close(self) -> None:
        """The same, and wait for the end."""
        await end_tasks(self._task)

    async def _run(self) -> None:
        while True:
            for node in self._order():
                try:
                    await self._follow(node)
                except SllmdError as error:
                    _log.debug("cannot follow", node=node, reason=str(error))
            self.source = None
            await asyncio.sleep(self._settings.retry_seconds * (1 + self._random.random()))

    def _order(self) -> list[NodeId]:
        """Members first, in random order so that followers spread over them; then anybody."""
        hinted, self._hints = [*self._hints, *self.members.everyone], []
        others = [node for node in self._candidates() if node not in hinted]
        self._random.shuffle(hinted)
        self._random.shuffle(others)
        return list(dict.fromkeys([*hinted, *others]))

    async def _follow(self, node: NodeId) -> None:
        """Until it ends; raises PeerUnreachable where another member should be asked."""
        silent_seconds = 3 * self._settings.beat_seconds
        connection = await self._links.connection(node)
        stream = connection.stream("control.follow", (self._position, self._term))
        async with stream:
            while items := await _batch(stream, silent_seconds):
                for item in items:
                    self._take(item)
                    if self._whole is not None:
                        await self._take_over(*self._whole)
                self.source = node
                if self._stale_seconds > self._settings.stale_seconds:
                    raise PeerUnreachable(f"node {node} has not heard of a leader of late")

    def _take(self, item: Any) -> None:
        match item:
            case ("entries", int(position), int(term), tuple(commands)):
                self._take_entries(position, term, commands)
            case ("beat", int(epoch), str(leader), int() | float() as age, tuple(voters), tuple(learners)):
                self._take_beat(epoch, NodeId(leader) if leader else None, float(age))
                self.members = Membership(voters, learners)
            case ("snapshot", int(position), int(term), int(size), int(offset), bytes(part)):
                self._take_part(position, term, size, offset, part)
            case ("elsewhere", tuple(nodes)):
                self._hints = [NodeId(node) for node in nodes]
                raise PeerUnreachable("it keeps no log")
            case _:
                raise ProtocolError(f"no item of the catalogue's stream: {item!r:.80}")

    def _take_entries(self, position: int, term: int, commands: tuple[bytes, ...]) -> None:
        catalogue, outcomes = self._catalogue, []
        for data in commands:
            try:
                command = unpack_command(data)
            except ProtocolError:
                catalogue, _ = apply_bytes(catalogue, data)
                continue
            catalogue, result = apply(catalogue, command)
            outcomes.append((command, result))
        # All or nothing: what is tried again after a crash must not be carried out twice.
        self._catalogue, self._position, self._term = catalogue, position, term
        self._known.advance(catalogue, position, term)
        for command, result in outcomes:
            self._listener.carried_out(command, result)

    def _take_beat(self, epoch: int, leader: NodeId | None, age_seconds: float) -> None:
        self._heard_at, self._stale_seconds = self._loop.time(), age_seconds
        if epoch < self.epoch or (epoch, leader) == (self.epoch, self.leader):
            return
        self.epoch, self.leader = epoch, leader
        self._listener.changed()

    def _take_part(self, position: int, term: int, size: int, offset: int, part: bytes) -> None:
        if offset == 0:
            self._parts = bytearray()
        if offset != len(self._parts) or size > SNAPSHOT_BYTES_MAX:
            raise ProtocolError(f"a part of a snapshot at {offset} does not follow {len(self._parts)}")
        self._parts += part
        if len(self._parts) < size:
            return
        self._whole = (position, term, bytes(self._parts))
        self._parts = bytearray()

    async def _take_over(self, position: int, term: int, data: bytes) -> None:
        self._whole = None
        self._catalogue = await asyncio.to_thread(restore, data)
        self._position, self._term = position, term
        self._known.advance(self._catalogue, position, term)
        self._listener.restored()


async def _batch(stream: ReplyStream, silent_seconds: float) -> list[Any]:
    """The next items; raises PeerUnreachable where the other side says nothing."""
    try:
        async with asyncio.timeout(silent_seconds):
            return await stream.batch()
    except TimeoutError:
        raise PeerUnreachable(f"it said nothing for {silent_seconds:g} s") from None

"""Whether this node keeps the log or follows a node that does, and going over from one to the other.

A leader that sends entries makes a node a member; a committed membership without it makes it a follower. A
former member leaves its journal where it is: what it promised still holds when it becomes a member again.
Promises made before ``sllmd recover`` hold no more: the cluster that goes on never heard them, and may lack
what this node's journal has as agreed. Such a journal is set aside when a leader of that cluster counts on
this node, and it begins with an empty one.

While a new member catches up it goes on following, so that what this node shows never goes back. A restart
is no exception to that where there is a journal: what is known to be agreed is in it. A node that only
follows has nothing to begin with, and is without a catalogue until it meets any member.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import structlog

from sllmd.cluster.catalogue.commands import Command
from sllmd.cluster.catalogue.results import Result
from sllmd.cluster.control import Leadership
from sllmd.cluster.journal import JournalSettings
from sllmd.cluster.member.disk import Disk, OpenDirectory, is_blank, last_membership, open_disk
from sllmd.cluster.member.following import Following, Listener
from sllmd.cluster.member.known import Known
from sllmd.cluster.member.links import Links
from sllmd.cluster.member.settings import ControlSettings
from sllmd.cluster.member.shell import Owner, Shell
from sllmd.cluster.raft import RaftSettings
from sllmd.cluster.raft.entries import NOBODY, Membership, incarnation
from sllmd.cluster.raft.events import Role
from sllmd.core.errors import JournalError, SllmdError
from sllmd.core.ids import NodeId
from sllmd.store.durable import sync_directory

_log = structlog.get_logger(__name__)

Alive = Callable[[], Collection[NodeId]]
"""The nodes that gossip believes here, with or without this one."""

ASKED_AT_ONCE = 3
"""Other nodes that are asked, one after the other, whether this one is a member still."""


@dataclass(frozen=True, slots=True)
class Place:
    """Who this node is, and what it works with."""

    node: NodeId
    directory: Path
    """The journal's own."""
    raft: RaftSettings
    journal: JournalSettings
    control: ControlSettings
    open_files: OpenDirectory


@dataclass(frozen=True, slots=True)
class Sitter:
    """Who is told what happens."""

    carried_out: Callable[[Command, Result], None]
    """A command and its result, in the log's order."""
    restored: Callable[[], None]
    """The state jumped ahead."""
    changed: Callable[[], None]
    """Leadership, membership, or what became of the disk."""


class Seat:
    """This node's part in agreement. ``shell`` is there while it keeps the log."""

    def __init__(self, place: Place, known: Known, links: Links, alive: Alive, sitter: Sitter) -> None:
        self.place = place
        self.shell: Shell | None = None
        self.following: Following | None = None
        self._known = known
        self._links = links
        self._alive = alive
        self._sitter = sitter
        self._switching: asyncio.Task[None] | None = None
        self._closed = False

    async def take(self, founding: Membership | None) -> None:
        """Take up where the journal ends. Raises JournalCorrupt and JournalFailed."""
        place = self.place
        disk = await open_disk(place.directory, place.journal, founding, place.open_files)
        if is_blank(disk.restored) or place.node not in last_membership(disk.restored).everyone:
            await disk.close()
            self._follow()
        else:
            self._keep(disk)

    async def close(self) -> None:
        """Leave it; what was begun with the disk comes to its end first."""
        self._closed = True
        if self._switching is not None:
            await asyncio.wait([self._switching])
        if self.following is not None:
            await self.following.close()
        if self.shell is not None:
            await self.shell.close()

    # --- what is to be seen from here ---

    @property
    def leadership(self) -> Leadership:
        """Who leads, as far as this node knows."""
        shell, following = self.shell, self.following
        if shell is not None and (following is None or self._shell_knows_more(shell, following)):
            raft = shell.raft
            leader = raft.leader if raft.role is not Role.STOPPED else None
            return Leadership(raft.term, leader, is_me=shell.leads)
        if following is not None:
            return Leadership(following.epoch, following.leader, is_me=False)
        return Leadership(0, None, is_me=False)

    def _shell_knows_more(self, shell: Shell, following: Following) -> bool:
        return shell.raft.leader is not None and shell.raft.term >= following.epoch

    @property
    def membership(self) -> Membership:
        """Who votes and who listens, as far as this node knows."""
        if self.shell is not None and self.shell.raft.membership.voters:
            return self.shell.raft.membership
        return self.following.members if self.following is not None else NOBODY

    @property
    def lost_reason(self) -> str | None:
        """Why this node agrees to nothing any more."""
        return self.shell.lost_reason if self.shell is not None else None

    @property
    def age_seconds(self) -> float:
        """Since this node last heard from whoever decides."""
        ages = [source.age_seconds for source in (self.shell, self.following) if source is not None]
        return min(ages, default=float("inf"))

    def others(self) -> list[NodeId]:
        """The other nodes that are here."""
        return [node for node in self._alive() if node != self.place.node]

    # --- going over ---

    def is_outdated(self, term: int) -> bool:
        """Whether this node keeps the log of before a recovery, and ``term`` is of after it."""
        raft = self.shell.raft if self.shell is not None else None
        return raft is not None and raft.log.last_index > 0 and incarnation(raft.term) < incarnation(term)

    def wanted(self, term: int) -> None:
        """A leader of this term counts on this node."""
        if self.shell is None or self.is_outdated(term):
            self._switch(lambda: self._become_member(term))

    def heard_of_membership(self, index: int, members: Membership) -> None:
        """A committed membership, as another member knows it."""
        is_newer = self.shell is not None and index > self.shell.raft.log.membership_index
        if is_newer and self.place.node not in members.everyone:
            self._switch(self._become_follower)

    def _switch(self, change: Callable[[], Awaitable[None]]) -> None:
        if not self._closed and (self._switching is None or self._switching.done()):
            self._switching = asyncio.ensure_future(change())

    async def _become_member(self, term: int) -> None:
        place = self.place
        if self.shell is not None:
            await self._become_follower()
        try:
            disk = await open_disk(place.directory, place.journal, None, place.open_files)
            if not is_blank(disk.restored) and incarnation(disk.restored.hard_state.term) < incarnation(term):
                await disk.close()
                await asyncio.to_thread(_set_aside, place.directory)
                disk = await open_disk(place.directory, place.journal, None, place.open_files)
        except (JournalError, OSError) as error:
            hint = (
                f"stop this node, move {place.directory} away, start it again: the leader sends what it needs"
            )
            _log.error("this node cannot keep the log", reason=str(error), hint=hint)
            await asyncio.sleep(place.control.beat_seconds)  # the leader asks again, and again
            return
        _log.info("this node keeps the log from now on")
        self._keep(disk)

    async def _become_follower(self) -> None:
        shell, self.shell = self.shell, None
        if self.following is None:
            self._follow()
        self._sitter.changed()
        if shell is not None:
            await shell.close()
        _log.info("this node keeps no log any more")

    def _keep(self, disk: Disk) -> None:
        place, sitter = self.place, self._sitter
        owner = Owner(
            send=lambda message, data: self._links.send(message.target, data),
            carried_out=sitter.carried_out,
            restored=sitter.restored,
            advanced=self._advanced,
            changed=sitter.changed,
        )
        self.shell = Shell(place.node, disk, place.raft, place.control, owner)
        self._advanced()
        self.shell.begin()

    def _follow(self) -> None:
        sitter = self._sitter
        listener = Listener(sitter.carried_out, sitter.restored, sitter.changed)
        self.following = Following(self._known, self._links, self.others, self.place.control, listener)

    def _advanced(self) -> None:
        shell, following = self.shell, self.following
        if shell is None:
            return
        self._known.advance(shell.catalogue, shell.position, shell.term)
        caught_up = shell.position >= self._known.position and shell.raft.leader is not None
        if following is not None and caught_up:
            self.following = None
            following.stop()
            self._sitter.changed()

    async def look_around(self) -> None:
        """For ever: a member that hears no leader may have been removed without hearing of it, and asks."""
        patience_seconds = 2 * self.place.raft.election_seconds_max
        while True:
            pause_seconds = max(patience_seconds, self.place.control.beat_seconds)
            await asyncio.sleep(pause_seconds * random.uniform(0.8, 1.2))
            shell = self.shell
            if shell is None or shell.lost_reason is not None or shell.age_seconds < patience_seconds:
                continue
            others = self.others()
            for node in random.sample(others, min(ASKED_AT_ONCE, len(others))):
                await self._ask_for_membership(node)

    async def _ask_for_membership(self, node: NodeId) -> None:
        deadline_seconds = self.place.control.beat_seconds
        try:
            answer = await self._links.call(
                node, "control.membership", None, deadline_seconds=deadline_seconds
            )
        except SllmdError:
            return  # it knows no more than this node does
        match answer:
            case (int(index), tuple(voters), tuple(learners)):
                self.heard_of_membership(index, Membership(voters, learners))


def _set_aside(directory: Path) -> None:
    """Beside where it was, for whoever wants to look. Raises OSError."""
    free = (directory.with_name(f"{directory.name}-before-recovery-{number}") for number in count(1))
    aside = next(path for path in free if not path.exists())
    directory.rename(aside)
    sync_directory(directory.parent)
    _log.warning(
        "the cluster was recovered without what this node's journal has: it begins with an empty one",
        old=str(aside),
        hint="what was agreed and is missing now is in the old one alone; else remove it",
    )

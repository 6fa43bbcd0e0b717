"""Agreement by this cluster's own raft, as the daemon uses it: ``ControlStore``.

A node is a member (it keeps the log; some members vote) or follows one. Which of the two changes while it
runs: a leader that sends it entries makes it a member, a committed membership without it makes it a follower.
Proposals and reads work the same on both: they go to whoever leads, and their answers are found here.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Self
from weakref import WeakSet

import structlog

from sllmd.cluster.catalogue import Catalogue, unpack_command
from sllmd.cluster.catalogue.commands import Body
from sllmd.cluster.catalogue.results import Result
from sllmd.cluster.control import Latest, Leadership, View
from sllmd.cluster.journal import DirectoryFiles, JournalSettings
from sllmd.cluster.member.disk import Disk, OpenDirectory, is_blank, last_membership, open_disk
from sllmd.cluster.member.feeding import Feed
from sllmd.cluster.member.following import Following, Listener
from sllmd.cluster.member.known import Known
from sllmd.cluster.member.links import Connect, Links
from sllmd.cluster.member.proposing import Proposer
from sllmd.cluster.member.settings import ControlSettings, VoterSettings
from sllmd.cluster.member.shell import Owner, Shell
from sllmd.cluster.member.stewardship import Steward
from sllmd.cluster.raft import RaftSettings, RaftStatus
from sllmd.cluster.raft.entries import NOBODY, Membership
from sllmd.cluster.raft.events import Refusal, Role
from sllmd.cluster.raft.messages import Append, SnapshotChunk, unpack_message
from sllmd.core.errors import ControlUnavailable, JournalError, ProtocolError, SllmdError
from sllmd.core.ids import NodeId
from sllmd.wire.rpc.methods import Caller, Methods

_log = structlog.get_logger(__name__)

Alive = Callable[[], Collection[NodeId]]
"""The nodes that gossip believes here, with or without this one."""


class RaftControl:
    """See the module and ``ControlStore``. Made by ``start``."""

    def __init__(
        self,
        node: NodeId,
        directory: Path,
        connect: Connect,
        alive: Alive,
        settings: RaftSettings,
        journal_settings: JournalSettings,
        voter_settings: VoterSettings,
        control_settings: ControlSettings,
        open_files: OpenDirectory,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._node = node
        self._directory = directory
        self._alive = alive
        self._raft_settings = settings
        self._journal_settings = journal_settings
        self._settings = control_settings
        self._open_files = open_files
        self._links = Links(connect, "raft.message")
        self._known = Known(self._age_seconds)
        self._shell: Shell | None = None
        self._following: Following | None = None
        self._feed = Feed(lambda: self._shell, control_settings)
        self._leadership = Leadership(0, None, is_me=False)
        self._leaderships: WeakSet[Latest[Leadership]] = WeakSet()
        label = f"{node}/{secrets.token_hex(8)}"
        self._proposer = Proposer(
            label, self._send, lambda: self._leadership.leader is not None, control_settings
        )
        self._steward = Steward(node, self._links, alive, voter_settings, lambda: self._shell)
        self._tasks: set[asyncio.Task[None]] = set()
        self._switching = False
        self._closed = False

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
        control = cls(
            node,
            directory,
            connect,
            alive,
            settings or RaftSettings(),
            journal_settings or JournalSettings(),
            voter_settings or VoterSettings(),
            control_settings or ControlSettings(),
            open_files,
        )
        disk = await open_disk(directory, control._journal_settings, founding, open_files)
        control._register(methods)
        if is_blank(disk.restored) or node not in last_membership(disk.restored).everyone:
            await disk.close()
            control._follow()
        else:
            control._take_part(disk)
        control._spawn(control._look_around())
        control._spawn(control._steward.run())
        return control

    # --- what the daemon sees ---

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
        if self._shell is not None and self._shell.raft.membership.voters:
            return self._shell.raft.membership
        return self._following.members if self._following is not None else NOBODY

    def status(self) -> RaftStatus | None:
        """What there is to see of raft on this node; None: it keeps no log."""
        return self._shell.status() if self._shell is not None else None

    @property
    def lost_reason(self) -> str | None:
        """Why this node agrees to nothing any more, since its disk failed; None: it does."""
        return self._shell.lost_reason if self._shell is not None else None

    async def propose(self, body: Body, *, epoch: int | None = None) -> Result:
        """See ``ControlStore.propose``."""
        return await self._proposer.propose(body, epoch)

    async def read(self) -> Catalogue:
        """See ``ControlStore.read``."""
        try:
            async with asyncio.timeout(self._settings.read_seconds):
                position = await self._read_position()
                await self._known.reach(position)
        except TimeoutError:
            raise ControlUnavailable(
                self.lost_reason or "nobody leads who could say what is newest",
                retry_after_seconds=self._settings.read_seconds,
            ) from None
        return self._known.catalogue

    async def hand_over(self) -> bool:
        """See ``ControlStore.hand_over``."""
        return await self._steward.hand_over()

    async def retire(self, *, deadline_seconds: float = 30.0) -> bool:
        """Stop being a member, once others can do without this node; whether that came true in time.

        A voter is replaced first where there is somebody, a leader hands over first. False at once where this
        node is alone: then there is nobody to leave the log with.
        """
        try:
            async with asyncio.timeout(deadline_seconds):
                while self._shell is not None and self.lost_reason is None:
                    if not set(self._alive()) - {self._node} and self.membership.everyone == (self._node,):
                        return False
                    await self._ask_to_retire()
                    await self._shell.changed.wait(self._settings.beat_seconds)
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop taking part."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._proposer.close()
        if self._following is not None:
            await self._following.close()
        if self._shell is not None:
            await self._shell.close()
        await self._links.close()

    # --- member or follower ---

    def _take_part(self, disk: Disk) -> None:
        owner = Owner(
            send=lambda message, data: self._links.send(message.target, data),
            carried_out=self._proposer.carried_out,
            restored=self._restored,
            advanced=self._advanced,
            changed=self._changed,
        )
        self._shell = Shell(self._node, disk, self._raft_settings, self._settings, owner)
        self._advanced()

    def _follow(self) -> None:
        listener = Listener(self._proposer.carried_out, self._restored, self._changed)
        self._following = Following(self._known, self._links, self._others, self._settings, listener)

    def _others(self) -> list[NodeId]:
        return [node for node in self._alive() if node != self._node]

    async def _become_member(self) -> None:
        """A leader counts on this node: begin to keep the log, from wherever its journal ended once."""
        try:
            disk = await open_disk(self._directory, self._journal_settings, None, self._open_files)
        except JournalError as error:
            _log.error("this node cannot keep the log", reason=str(error))
            await asyncio.sleep(self._settings.read_seconds)
            return
        _log.info("this node keeps the log from now on")
        self._take_part(disk)

    async def _become_follower(self) -> None:
        """The membership goes on without this node."""
        shell, self._shell = self._shell, None
        if shell is not None:
            await shell.close()
        _log.info("this node keeps no log any more")
        if self._following is None:
            self._follow()

    def _switch(self, change: Callable[[], Any]) -> None:
        async def switching() -> None:
            try:
                await change()
            finally:
                self._switching = False

        if not self._switching and not self._closed:
            self._switching = True
            self._spawn(switching())

    def _heard_of_membership(self, index: int, members: Membership) -> None:
        """A committed membership, as another member knows it."""
        shell = self._shell
        is_newer = shell is not None and index > shell.raft.log.membership_index
        if is_newer and self._node not in members.everyone:
            self._switch(self._become_follower)

    async def _look_around(self) -> None:
        """A member that hears no leader may have been removed without hearing of it: ask."""
        patience_seconds = 2 * self._raft_settings.election_seconds_max
        while True:
            await asyncio.sleep(max(patience_seconds, self._settings.beat_seconds) * random.uniform(0.8, 1.2))
            shell = self._shell
            if shell is None or shell.lost_reason is not None or shell.age_seconds < patience_seconds:
                continue
            others = self._others()
            for node in random.sample(others, min(3, len(others))):
                await self._ask_for_membership(node)

    async def _ask_for_membership(self, node: NodeId) -> None:
        try:
            answer = await self._links.call(
                node, "control.membership", None, deadline_seconds=self._settings.beat_seconds
            )
        except SllmdError:
            return
        match answer:
            case (int(index), tuple(voters), tuple(learners)):
                self._heard_of_membership(index, Membership(voters, learners))

    # --- what shell and stream tell ---

    def _advanced(self) -> None:
        shell, following = self._shell, self._following
        if shell is None:
            return
        self._known.advance(shell.catalogue, shell.position, shell.term)
        caught_up = shell.position >= self._known.position and shell.raft.leader is not None
        if following is not None and caught_up:
            self._following = None
            self._spawn(following.close())
            self._changed()

    def _restored(self) -> None:
        self._proposer.restored(self._known.catalogue)

    def _changed(self) -> None:
        """Who leads may have changed."""
        before = self._leadership
        now = self._whose_leadership()
        if now == before or now.epoch < before.epoch:
            self._check_lost()
            return
        self._leadership = now
        for latest in self._leaderships:
            latest.put(now)
        if (now.epoch, now.leader) != (before.epoch, before.leader):
            self._proposer.leader_changed()
        self._check_lost()

    def _check_lost(self) -> None:
        if self.lost_reason is not None:
            self._proposer.fail(f"this node's journal failed: {self.lost_reason}")

    def _whose_leadership(self) -> Leadership:
        shell, following = self._shell, self._following
        if shell is not None and (following is None or shell.raft.term > following.epoch):
            raft = shell.raft
            leader = raft.leader if raft.role is not Role.STOPPED else None
            return Leadership(raft.term, leader, is_me=shell.leads)
        if following is not None:
            return Leadership(following.epoch, following.leader, is_me=False)
        return self._leadership

    def _age_seconds(self) -> float:
        ages = [source.age_seconds for source in (self._shell, self._following) if source is not None]
        return min(ages, default=float("inf"))

    # --- to whoever leads ---

    def _has_leader(self) -> bool:
        return self._leadership.leader is not None

    async def _send(self, commands: Sequence[bytes]) -> Sequence[Refusal | None]:
        leader = self._leadership.leader
        if leader is None:
            return [Refusal.NO_LEADER] * len(commands)
        if leader == self._node:
            return (
                await self._shell.propose(commands) if self._shell else [Refusal.NOT_LEADER] * len(commands)
            )
        retry_seconds = self._settings.retry_seconds
        try:
            connection = await self._links.connection(leader)
        except SllmdError as error:
            message = f"the leader {leader} cannot be reached: {error.message}"
            raise ControlUnavailable(message, retry_after_seconds=retry_seconds) from error
        reply = await connection.call(
            "control.propose", tuple(commands), deadline_seconds=self._settings.beat_seconds
        )
        match reply:
            case tuple() if len(reply) == len(commands):
                return [None if word is None else Refusal(word) for word in reply]
        raise ProtocolError(f"no answer to proposals: {reply!r:.80}")

    async def _read_position(self) -> int:
        """A position that a read which begins now must have seen."""
        while True:
            shell = self._shell
            if shell is not None and self._following is None:
                if shell.lost_reason is not None:
                    raise TimeoutError
                if await shell.read() is None:
                    return shell.position
            elif (leader := self._leadership.leader) is not None and leader != self._node:
                try:
                    return int(await self._links.call(leader, "control.read", None, deadline_seconds=1.0))
                except SllmdError as error:
                    _log.debug("read refused", leader=leader, reason=str(error))
            await asyncio.sleep(self._settings.retry_seconds)

    async def _ask_to_retire(self) -> None:
        leader = self._leadership.leader
        if leader is None:
            return
        if leader == self._node:
            self._steward.retiring(self._node)
            return
        try:
            await self._links.call(
                leader, "control.retire", None, deadline_seconds=self._settings.beat_seconds
            )
        except SllmdError as error:
            _log.info("the leader does not let this node go yet", reason=str(error))

    # --- what other nodes ask ---

    def _register(self, methods: Methods) -> None:
        methods.note("raft.message", self._on_message)
        methods.note("control.removed", self._on_removed)
        methods.unary("control.propose", self._on_propose)
        methods.unary("control.read", self._on_read)
        methods.unary("control.membership", self._on_membership)
        methods.unary("control.retire", self._on_retire)
        methods.stream("control.follow", self._on_follow)

    def _on_message(self, body: Any, caller: Caller) -> None:
        if not isinstance(body, bytes):
            raise ProtocolError("a raft message is bytes")
        message = unpack_message(body)
        if message.source != caller.node:
            raise ProtocolError(f"a message of node {message.source}, from node {caller.node}")
        self._links.heard(caller.node, caller.connection)
        if self._shell is not None:
            self._shell.receive(message)
        elif isinstance(message, (Append, SnapshotChunk)) and message.target == self._node:
            self._switch(self._become_member)

    def _on_removed(self, body: Any, _caller: Caller) -> None:
        match body:
            case (int(index), tuple(voters), tuple(learners)):
                self._heard_of_membership(index, Membership(voters, learners))

    async def _on_propose(self, body: Any, _caller: Caller) -> Any:
        shell = self._shell
        match body:
            case tuple() if all(isinstance(command, bytes) for command in body):
                pass
            case _:
                raise ProtocolError("proposals are an array of bytes")
        if shell is None or shell.raft.role is not Role.LEADER:
            return [Refusal.NOT_LEADER] * len(body)
        readable = [command for command in body if _is_readable(command)]
        answers = iter(await shell.propose(readable))
        if len(readable) == len(body):
            return list(answers)
        return [next(answers) if _is_readable(command) else Refusal.INVALID for command in body]

    async def _on_read(self, _body: Any, _caller: Caller) -> Any:
        shell = self._shell
        refusal = Refusal.NOT_LEADER if shell is None else await shell.read()
        if shell is None or refusal is not None:
            raise ControlUnavailable(
                f"this node cannot say what is newest: {refusal}",
                retry_after_seconds=self._settings.retry_seconds,
            )
        return shell.position

    async def _on_membership(self, _body: Any, _caller: Caller) -> Any:
        status = self.status()
        if status is None or status.leader is None or not status.membership_committed:
            return None
        assert self._shell is not None
        members = status.membership
        return (self._shell.raft.log.membership_index, members.voters, members.learners)

    async def _on_retire(self, _body: Any, caller: Caller) -> Any:
        if self._shell is None or not self._shell.leads:
            raise ControlUnavailable(
                "this node does not lead", retry_after_seconds=self._settings.retry_seconds
            )
        self._steward.retiring(caller.node)

    async def _on_follow(self, body: Any, _caller: Caller) -> AsyncGenerator[Any, None]:
        match body:
            case (int(position), int(term)):
                pass
            case _:
                raise ProtocolError("to follow, say the position and term of what is known")
        async for item in self._feed.follow(position, term):
            yield item
        yield ("elsewhere", [node for node in self.membership.everyone if node != self._node])

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_readable(command: bytes) -> bool:
    """A leader takes no command into the log that it could not carry out itself."""
    try:
        unpack_command(command)
    except ProtocolError:
        return False
    return True

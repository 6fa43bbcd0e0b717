"""Machine, journal thread and catalogue together: three nodes in one event loop, on a real clock and disk.

The shell here is as small as a shell can be; sockets, clients and snapshots are somebody else's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from random import Random

from sllmd.cluster.catalogue import EMPTY, Command, apply_bytes, pack_command
from sllmd.cluster.catalogue.commands import SettingPut
from sllmd.cluster.journal import DirectoryFiles, Journal, JournalSettings, Wal
from sllmd.cluster.raft import Raft, RaftSettings, Start
from sllmd.cluster.raft.entries import EntryKind, founding
from sllmd.cluster.raft.events import (
    Apply,
    Event,
    Persist,
    Persisted,
    Proposal,
    Propose,
    Receive,
    Role,
    Send,
    Tick,
)
from sllmd.cluster.raft.messages import Message, pack_message, unpack_message
from sllmd.core.ids import NodeId
from tests.cluster.play import members
from tests.waiting import PATIENCE_SECONDS

QUICK = RaftSettings(heartbeat_seconds=0.1, election_seconds_min=0.5, election_seconds_max=0.8)


class Shell:
    """One node: events in, actions out, nothing clever."""

    def __init__(self, node: str, directory: Path, wire: dict[str, Shell]) -> None:
        self.node, self.wire, self.random = NodeId(node), wire, Random(node)
        self.loop = asyncio.get_running_loop()
        self.files = DirectoryFiles(directory)
        self.journal = Journal(Wal(self.files, JournalSettings()))
        self.state = EMPTY
        self.moved = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        restored = self.journal.recovered.restored
        if not restored.entries:
            restored = founding(members("abc"))
            await self.journal.persist(Persist(0, restored.hard_state, None, restored.entries, ()))
        start = Start(
            self.node, QUICK, restored, self.loop.time(), self.random.random(), self.random.getrandbits(64)
        )
        self.raft = Raft(start)
        self.wire[self.node] = self
        self._arm()

    async def stop(self) -> None:
        del self.wire[self.node]
        if self.timer is not None:
            self.timer.cancel()
        await self.journal.close()
        await asyncio.gather(*self.tasks)
        self.files.close()

    def handle(self, event: Event) -> None:
        if self.wire.get(self.node) is not self:
            return
        for action in self.raft.handle(event):
            match action:
                case Send(message):
                    self._send(message)
                case Persist():
                    task = self.loop.create_task(self._persist(action))
                    self.tasks.add(task)
                    task.add_done_callback(self.tasks.discard)
                case Apply(entries):
                    for entry in entries:
                        if entry.kind is EntryKind.COMMAND:
                            self.state, _ = apply_bytes(self.state, entry.data)
        self.moved.set()
        self._arm()

    async def _persist(self, persist: Persist) -> None:
        await self.journal.persist(persist)
        for message in persist.messages:
            self._send(message)
        self.handle(Persisted(self.loop.time(), persist.ticket))

    def _send(self, message: Message) -> None:
        data = pack_message(message)
        self.loop.call_soon(self._arrive, message.target, data)

    def _arrive(self, target: NodeId, data: bytes) -> None:
        if target in self.wire:
            self.wire[target].handle(Receive(self.loop.time(), unpack_message(data)))

    def _arm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_at(self.raft.deadline_seconds(), self._tick)

    def _tick(self) -> None:
        self.handle(Tick(self.loop.time(), self.random.random()))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not holds():
                self.moved.clear()
                await self.moved.wait()


def leader(wire: dict[str, Shell]) -> Shell | None:
    return next((shell for shell in wire.values() if shell.raft.role is Role.LEADER), None)


def put(shell: Shell, *keys: str) -> None:
    commands = [pack_command(Command(SettingPut(key, key.encode(), None))) for key in keys]
    shell.handle(Propose(shell.loop.time(), tuple(Proposal(1, data) for data in commands)))


async def test_written_killed_written_restarted(tmp_path: Path) -> None:
    wire: dict[str, Shell] = {}
    for node in "abc":
        await Shell(node, tmp_path / node, wire).start()
    some = wire["a"]
    await some.until(lambda: some.raft.leader is not None)
    first = wire[some.raft.leader]  # type: ignore[index]
    for number in range(100):
        put(first, f"one.{number}")
    await first.until(lambda: len(first.state.settings) == 100)

    await first.stop()
    some = next(iter(wire.values()))
    await some.until(lambda: leader(wire) is not None)
    second = leader(wire)
    assert second is not None
    put(second, *(f"two.{number}" for number in range(100)))
    await second.until(lambda: len(second.state.settings) == 200)

    again = Shell(first.node, tmp_path / first.node, wire)
    await again.start()
    await again.until(lambda: again.raft.applied >= second.raft.applied)
    assert again.state == second.state
    for shell in list(wire.values()):
        await shell.stop()

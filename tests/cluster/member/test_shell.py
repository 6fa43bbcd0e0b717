"""The shell by itself: what it does when the whole process stood still."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from sllmd.cluster.catalogue import pack_command
from sllmd.cluster.catalogue.commands import Command, SettingPut
from sllmd.cluster.journal import JournalSettings
from sllmd.cluster.journal.snapshots import describe
from sllmd.cluster.member import shell as shell_module
from sllmd.cluster.member import state
from sllmd.cluster.member.disk import open_disk
from sllmd.cluster.member.shell import Owner, Shell
from sllmd.cluster.raft.entries import Entry, EntryKind
from sllmd.cluster.raft.events import Restore
from sllmd.cluster.raft.messages import Append, Message, PreVoteRequest
from sllmd.core.ids import NodeId
from tests.cluster.member.nodes import CONTROL, RAFT
from tests.cluster.play import members
from tests.waiting import eventually

NARROW = RAFT.model_copy(update={"election_seconds_min": 0.3, "election_seconds_max": 0.37})
STALL_SECONDS = 0.47
"""Longer than any time-out, by more than the shell and by less than the machine forgives."""


@pytest.fixture
def event_loop_policy():
    return uvloop.EventLoopPolicy()


def quiet_owner(**told: Any) -> Owner:
    deaf = dict.fromkeys(("send", "carried_out", "restored", "advanced", "changed"), lambda *_: None)
    return Owner(**{**deaf, **told})


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[tuple[Shell, list[Message]]]:
    sent: list[Message] = []
    owner = quiet_owner(send=lambda message, _: sent.append(message))
    disk = await open_disk(tmp_path, JournalSettings(), members("abc"))
    shell = Shell(NodeId("a"), disk, NARROW, CONTROL.model_copy(update={"late_seconds_max": 0.05}), owner)
    yield shell, sent
    await shell.close()


def heartbeat() -> Append:
    return Append(NodeId("b"), NodeId("a"), 2, 1, 1, (), 1, 0)


async def asked_for_votes(sent: list[Message], within_seconds: float) -> bool:
    try:
        async with asyncio.timeout(within_seconds):
            while not any(isinstance(message, PreVoteRequest) for message in sent):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    except TimeoutError:
        return False
    return True


async def test_a_snapshot_that_cannot_be_taken_over_ends_it_instead_of_holding_it_up(
    shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    member, _ = shell

    def crash(_data: bytes) -> None:
        raise ZeroDivisionError

    meta = describe(5, 1, members("abc"), b"state")
    await member._journal.save_snapshot(meta, b"state")
    monkeypatch.setattr(state, "restore", crash)
    member._state.take(Restore(meta))
    await eventually(lambda: member.lost_reason, "it is told")
    assert "cannot be taken over" in member.lost_reason


async def test_who_stood_still_reads_what_came_meanwhile_before_it_gives_its_leader_up(shell) -> None:
    """It stands still while it reads one connection; on another one its leader is heard meanwhile."""
    one, sent = shell
    loop = asyncio.get_running_loop()
    one.receive(heartbeat())
    ours, theirs = socket.socketpair()
    slow, other = socket.socketpair()

    def stand_still() -> None:
        slow.recv(1)
        time.sleep(STALL_SECONDS)
        theirs.send(b"x")

    with ours, theirs, slow, other:
        loop.add_reader(ours, lambda: (ours.recv(1), one.receive(heartbeat())))
        loop.add_reader(slow, stand_still)
        other.send(b"x")
        asked = await asked_for_votes(sent, STALL_SECONDS + 0.15)
        loop.remove_reader(ours)
        loop.remove_reader(slow)
    assert not asked


async def test_who_stood_still_and_hears_nobody_stands_all_the_same(shell) -> None:
    one, sent = shell
    one.receive(heartbeat())
    await asyncio.sleep(0.05)
    time.sleep(STALL_SECONDS)  # noqa: ASYNC251
    assert await asked_for_votes(sent, 60)


async def test_what_was_agreed_is_known_again_after_a_restart_without_a_majority(tmp_path: Path) -> None:
    """Also what no later entry told the disk of."""
    disk = await open_disk(tmp_path, JournalSettings(), members("abc"))
    first = Shell(NodeId("a"), disk, RAFT, CONTROL, quiet_owner())
    setting = pack_command(Command(SettingPut("key", b"value", None)))
    entry = Entry(2, 2, EntryKind.COMMAND, setting)
    first.receive(Append(NodeId("b"), NodeId("a"), 2, 1, 1, (entry,), 1, 0))
    first.receive(Append(NodeId("b"), NodeId("a"), 2, 2, 2, (), 2, 0))
    await eventually(lambda: first.position == 2, "it is agreed")
    before = first.catalogue
    await first.close()
    disk = await open_disk(tmp_path, JournalSettings(), None)
    again = Shell(NodeId("a"), disk, RAFT, CONTROL, quiet_owner())
    again.begin()
    await eventually(lambda: again.position == 2, "nobody else is there")
    assert again.catalogue == before
    await again.close()


async def test_what_is_agreed_reaches_the_disk_though_nothing_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed closes nothing."""
    monkeypatch.setattr(shell_module, "NOTE_SECONDS", 0.0)
    disk = await open_disk(tmp_path, JournalSettings(), members("abc"))
    one = Shell(NodeId("a"), disk, RAFT, CONTROL, quiet_owner())
    one.receive(Append(NodeId("b"), NodeId("a"), 2, 1, 1, (), 1, 0))
    await eventually(lambda: disk.journal._wal._agreed.index == 1, "the journal has it")
    await one.close()

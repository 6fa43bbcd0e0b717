"""Proposals until they are answered: sent once, again, in vain. The test is the leader and the log."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from sllmd.cluster.catalogue import EMPTY, Command, apply, unpack_command
from sllmd.cluster.catalogue.commands import ClientOpen, SettingPut
from sllmd.cluster.catalogue.results import Denied, Done, Reason
from sllmd.cluster.catalogue.state import CLIENTS_MAX
from sllmd.cluster.member.proposing import WINDOW, Proposer
from sllmd.cluster.member.settings import ControlSettings
from sllmd.cluster.raft.events import Refusal
from sllmd.core.errors import ControlUnavailable, OutcomeUnknown, PeerUnreachable, SllmdError
from tests.waiting import eventually

SETTINGS = ControlSettings(propose_seconds=60, retry_seconds=0.01)
"""Nobody's time is up on however busy a machine, but where a test says so."""
HURRIED = ControlSettings(propose_seconds=0.2, retry_seconds=0.01)


class Leader:
    """Takes commands, or does what ``fate`` says; carries them out when it is told to."""

    def __init__(self) -> None:
        self.proposer = Proposer("me", self.send, lambda: self.leads, SETTINGS)
        self.leads = True
        self.fate: Refusal | SllmdError | None = None
        self.by_hand = False
        self.state = EMPTY
        self.sent: list[Command] = []
        self.log: list[Command] = []
        self.results: list[object] = []

    async def send(self, commands: Sequence[bytes]) -> Sequence[Refusal | None]:
        self.sent += [unpack_command(data) for data in commands]
        if isinstance(self.fate, SllmdError):
            raise self.fate
        if self.fate is not None:
            return [self.fate] * len(commands)
        self.log += [unpack_command(data) for data in commands]
        if not self.by_hand:
            self.carry_out()
        return [None] * len(commands)

    def carry_out(self) -> None:
        log, self.log = self.log, []
        for command in log:
            self.state, result = apply(self.state, command)
            self.results.append(result)
            self.proposer.carried_out(command, result)

    async def ready(self) -> None:
        """With a client of its own, so that what follows is about proposals only."""
        await self.put("first")
        self.sent.clear()
        self.results.clear()

    async def put(self, key: str, expected: int | None = None):
        return await self.proposer.propose(SettingPut(key, b"", expected), None)

    def hurry(self) -> None:
        """For what is proposed from here on, time is up soon."""
        assert self.proposer._sweep is not None
        self.proposer._sweep.cancel()  # it is set to an hour that is far away
        self.proposer._sweep, self.proposer._settings = None, HURRIED

    async def until_sent(self, count: int) -> None:
        await eventually(lambda: len(self.sent) >= count, f"{count} commands are sent")


@pytest.fixture
async def leader() -> AsyncIterator[Leader]:
    one = Leader()
    yield one
    await one.proposer.close()


async def test_those_of_one_turn_travel_together_and_know_what_was_answered(leader: Leader) -> None:
    await leader.ready()
    await asyncio.gather(*(leader.put(str(number)) for number in range(5)))
    assert [command.seq for command in leader.sent] == [2, 3, 4, 5, 6]
    assert {command.answered_below for command in leader.sent} == {2}


async def test_what_was_refused_goes_again_and_what_is_never_taken_was_never_begun(leader: Leader) -> None:
    await leader.ready()
    leader.fate = Refusal.TRANSFERRING
    waiting = asyncio.create_task(leader.put("x"))
    await leader.until_sent(2)
    leader.fate = None
    assert isinstance(await waiting, Done)
    leader.fate = Refusal.BUSY
    leader.hurry()
    with pytest.raises(ControlUnavailable, match="under way"):
        await leader.put("y")


@pytest.mark.parametrize(
    ("in_doubt", "error"), [(False, ControlUnavailable), (True, OutcomeUnknown)], ids=["sure", "in doubt"]
)
async def test_only_what_surely_did_not_arrive_is_surely_not_carried_out(
    leader: Leader, in_doubt: bool, error: type[SllmdError]
) -> None:
    await leader.ready()
    leader.hurry()
    leader.fate = PeerUnreachable("it broke", in_doubt=in_doubt)
    with pytest.raises(error, match="it broke"):
        await leader.put("x")


async def test_a_refusal_after_doubt_is_no_certainty(leader: Leader) -> None:
    await leader.ready()
    leader.hurry()
    leader.fate = PeerUnreachable("it broke", in_doubt=True)
    waiting = asyncio.create_task(leader.put("x"))
    await leader.until_sent(1)
    leader.fate = Refusal.NOT_LEADER
    with pytest.raises(OutcomeUnknown):
        await waiting


async def test_a_new_leader_gets_it_again_and_it_counts_once(leader: Leader) -> None:
    await leader.ready()
    leader.by_hand = True
    waiting = asyncio.create_task(leader.put("x", expected=0))
    await leader.until_sent(1)
    leader.proposer.leader_changed()
    await leader.until_sent(2)
    assert leader.sent[0] == leader.sent[1]
    leader.carry_out()
    assert isinstance(await waiting, Done)
    assert leader.results[0] == leader.results[1]


async def test_without_a_leader_nothing_is_sent(leader: Leader) -> None:
    await leader.ready()
    leader.hurry()
    leader.leads = False
    with pytest.raises(ControlUnavailable):
        await leader.put("x")
    assert leader.sent == []


async def test_a_snapshot_that_hides_the_log_shows_the_answer(leader: Leader) -> None:
    await leader.ready()
    leader.by_hand = True
    waiting = asyncio.create_task(leader.put("x"))
    await leader.until_sent(1)
    (command,) = leader.log
    leader.state, result = apply(leader.state, command)
    leader.proposer.restored(leader.state)
    assert await waiting == result


async def test_a_client_that_was_forgotten_begins_anew(leader: Leader) -> None:
    await leader.ready()
    for number in range(CLIENTS_MAX):
        leader.state, _ = apply(leader.state, Command(ClientOpen(str(number))))
    assert isinstance(await leader.put("x", expected=0), Done)
    denied, *_, done = leader.results
    assert isinstance(denied, Denied)
    assert denied.reason is Reason.UNKNOWN_CLIENT
    assert isinstance(done, Done)


async def test_a_forgotten_client_does_not_guess_what_a_snapshot_hid(leader: Leader) -> None:
    await leader.ready()
    leader.by_hand = True
    waiting = asyncio.create_task(leader.put("x"))
    await leader.until_sent(1)
    for number in range(CLIENTS_MAX):
        leader.state, _ = apply(leader.state, Command(ClientOpen(str(number))))
    leader.proposer.restored(leader.state)
    leader.carry_out()
    with pytest.raises(OutcomeUnknown):
        await waiting


async def test_no_more_are_open_than_the_catalogue_remembers(leader: Leader) -> None:
    await leader.ready()
    leader.by_hand = True
    waiting = [asyncio.create_task(leader.put(str(number))) for number in range(2 * WINDOW)]
    await leader.until_sent(WINDOW)
    await asyncio.sleep(0)
    assert len(leader.sent) == WINDOW
    leader.by_hand = False
    leader.carry_out()
    results = await asyncio.gather(*waiting)
    assert all(isinstance(result, Done) for result in results)
    assert len(leader.sent) == 2 * WINDOW

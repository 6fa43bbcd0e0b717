"""Schedules for bugs that random faults do not find: each is safe, and unsafe with its planted bug."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sllmd.cluster.raft import Raft, Start
from sllmd.cluster.raft.entries import NOTHING, Entry, EntryKind, HardState, Restored, SnapshotMeta
from sllmd.cluster.raft.events import (
    Apply,
    ChangeMembership,
    Persist,
    Read,
    ReadReady,
    Receive,
    Refusal,
    Refused,
    Role,
    SnapshotReceived,
    Tick,
    TransferLeadership,
)
from sllmd.cluster.raft.messages import (
    Append,
    AppendReply,
    PreVoteReply,
    PreVoteRequest,
    ReadReply,
    ReadRequest,
    SnapshotChunk,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from tests.cluster.play import SETTINGS, A, B, C, D, E, Table, everything, log_of, members, only
from tests.simulation.mutants import DIRECTED

Schedule = Callable[[type[Raft]], None]
BALLOTS = (PreVoteRequest, PreVoteReply, VoteRequest, VoteReply)
ONE_BY_ONE = SETTINGS.model_copy(update={"append_entries_max": 1})


def state_machines_agree(table: Table) -> None:
    """At each place, every node applied the same entry."""
    seen: dict[int, tuple[int, bytes]] = {}
    for node in table.nodes:
        for action in table.of(node, Apply):
            for entry in action.entries:  # type: ignore[attr-defined]
                assert seen.setdefault(entry.index, (entry.term, entry.data)) == (entry.term, entry.data)


def journal_of(table: Table, node: str) -> Restored:
    """What a restart of this node would find."""
    raft = table.nodes[node]  # type: ignore[index]
    return Restored(raft.hard_state(), None, raft.log.range(1, raft.log.last_index))


def figure_eight(raft_class: type[Raft]) -> None:
    """Raft paper, figure 8: an entry of an old term on a majority is not committed by being there.

    A and B have entry 2 of term 2, E has another one of term 3. A leads again, brings its old entry to C,
    and dies before anything of its new term is there; E, whose log is the newer, overwrites it.
    """
    journals = {
        A: log_of(2, voters="abcde"),
        B: log_of(2, voters="abcde"),
        C: log_of(term=3, vote=E, voters="abcde"),
        D: log_of(term=3, vote=E, voters="abcde"),
        E: log_of(3, voters="abcde"),
    }
    table = Table(journals, settings=ONE_BY_ONE, raft_class=raft_class)
    for _ in range(2):  # the first attempt learns of term 3
        table[A].reset_election_timer()
        table.tick(A)
        table.deliver(only(*BALLOTS), among="abc")
    assert table[A].role is Role.LEADER
    table.deliver(lambda one: B in (one.source, one.target), among="ab")
    while table.terms(C) != [2]:
        table.move(A, among="ac")
    table.deliver(only(AppendReply), among="ac", rounds=1)
    table.down.add(A)
    table.drop()
    while table[E].role is not Role.LEADER:
        table.move(E, among="cde")
    table.deliver(among="cde")
    assert table.terms(C)[0] == 3
    state_machines_agree(table)


def leader_that_hears_nobody(raft_class: type[Raft]) -> None:
    """All that is sent to the leader is lost, for good; what it sends arrives. The others must go on."""
    table = Table(raft_class=raft_class)
    table.elect(A)
    end = table.now + 5
    while table.now < end:
        node = min(table.nodes, key=lambda one: table[one].deadline_seconds())
        table.jitter = (table.jitter + 0.37) % 1
        table.tick(node)
        table.deliver(lambda one: one.target != A)
        table.drop()
    assert {B, C} & table.leaders(), "a leader that hears nobody keeps everybody quiet"


def return_of_the_lost(raft_class: type[Raft]) -> None:
    """A node was cut off for long and stood again and again; when it is back, the leader leads on."""
    table = Table(raft_class=raft_class)
    table.elect(A)
    for _ in range(20):
        table.tick(C)
        table.drop(lambda one: C in (one.source, one.target))
    table.tick(A)
    table.deliver(among="ab")
    term = table[A].term
    table.tick(A)
    table.deliver()
    table.deliver()
    assert (table.leaders(), table[C].term) == ({A}, term), "a node that was away deposed a good leader"


def late_order_to_stand(raft_class: type[Raft]) -> None:
    """A hand-over was given up, and its order to stand arrives when the target no longer has everything."""
    table = Table(raft_class=raft_class)
    table.elect(A)
    table.give(A, TransferLeadership(table.now, C))
    late = table.take(only(TimeoutNow))
    while table[A].transfer_target is not None:
        table.tick(A)
        table.deliver(lambda one: not isinstance(one, TimeoutNow))
    assert table[A].role is Role.LEADER
    table.drop()
    table.propose(A, "x")
    table.deliver(among="ab")
    assert table.applied(A) == ["x"]
    table.drop()
    table.wire = late
    table.deliver(only(TimeoutNow, *BALLOTS))
    assert table[C].role is not Role.LEADER, "a node leads without an entry that was committed"


def two_half_done_changes(raft_class: type[Raft]) -> None:
    """Ongaro's bug of 2015: two leaders, each with a change that is not committed, of the same membership."""
    table = Table({node: log_of(voters="abcd") for node in (A, B, C, D)}, raft_class=raft_class)
    table.boot(E, NOTHING)
    table.elect(A, among="abcd")
    table.give(A, ChangeMembership(table.now, 1, members("abcde")))
    while E not in table[E].membership.voters:
        table.move(A, among="ae")
    table.down.add(A)
    table.drop()
    while table[B].role is not Role.LEADER:
        table.tick(B)
        table.deliver(only(*BALLOTS), among="bcd")
    table.drop()
    table.give(B, ChangeMembership(table.now, 2, members("bcd")))
    for _ in range(3):
        table.tick(B)
        table.deliver(among="bc")
        table.drop()
    table.down |= {B, C}
    table.down.discard(A)
    table[A].step_down(table[A].term, None)
    while table[A].role is not Role.LEADER:
        table.tick(A)
        table.deliver(among="ade")
    table.deliver(among="ade")
    state_machines_agree(table)


def new_leader_reads(raft_class: type[Raft]) -> None:
    """A new leader has an acknowledged entry and does not know yet that it is committed."""
    table = Table(raft_class=raft_class)
    table.elect(A)
    table.propose(A, "x")
    table.deliver(only(Append), among="ab", rounds=1)
    table.deliver(only(AppendReply), rounds=1)
    assert table.applied(A) == ["x"]
    assert table.applied(B) == []
    table.down.add(A)
    table.drop()
    while table[B].role is not Role.CANDIDATE:
        table.tick(B)
        table.deliver(only(PreVoteRequest, PreVoteReply))
    table.by_hand.add(B)  # its first entry will not be durable
    table.deliver(only(VoteRequest, VoteReply))
    table.drop()
    table.give(B, Read(table.now, 7))
    for _ in range(3):
        table.tick(B)
        table.deliver()
    assert table.applied(B) == ["x"] or not table.of(B, ReadReady), "a read missed an acknowledged write"


def deposed_leader_reads(raft_class: type[Raft]) -> None:
    """A leader that was cut off is asked for a read after its successor has acknowledged a write."""
    table = Table(raft_class=raft_class)
    table.elect(A)
    while table[B].role is not Role.LEADER:
        table.tick(B)
        table.deliver(among="bc")
        table.drop()
    table.tick(B)
    table.propose(B, "x")
    table.deliver(among="bc")
    assert table.applied(B) == ["x"]
    table.give(A, Read(table.now, 1))
    table.deliver()
    assert not table.of(A, ReadReady), "a deposed leader answered a read"


def answer_of_a_former_life(raft_class: type[Raft]) -> None:
    """A node restarts and counts its reads from 1 again; the answer to the old read 1 is still on its way."""
    table = Table(raft_class=raft_class)
    table.elect(A)
    table.give(B, Read(table.now, 1))
    table.deliver(lambda one: not isinstance(one, ReadReply))
    late = table.take(only(ReadReply))
    assert late
    journal = journal_of(table, B)
    table.boot(B, journal, nonce=2)
    table.propose(A, "x")
    table.deliver(among="ac")
    assert table.applied(A) == ["x"]
    table.drop()
    table.tick(A)
    last = table[B].log.last_index
    beat = Append(A, B, table[A].term, last, table[B].log.last_term, (), last, 0)
    table.give(B, Receive(table.now, beat))
    table.give(B, Read(table.now, 1))
    table.drop()
    table.wire = late
    table.deliver(rounds=1)
    assert not table.of(B, ReadReady), "a read was answered without a question"


def proposals_while_handing_over(raft_class: type[Raft]) -> None:
    """While a leader hands over, it takes nothing new: the target would never have everything."""
    table = Table(raft_class=raft_class)
    table.elect(A)
    table.give(A, TransferLeadership(table.now, C))
    table.propose(A, "x")
    assert [one.reason for one in table.of(A, Refused)] == [Refusal.TRANSFERRING]  # type: ignore[attr-defined]


def more_than_was_compared(raft_class: type[Raft]) -> None:
    """A follower's log goes on behind what an append speaks of; that part may be anything."""
    table = Table({B: log_of(2, 2, 2)}, raft_class=raft_class)
    beat = Append(A, B, 3, 1, 1, (), 0, 0)
    table.give(B, Receive(table.now, beat))
    replies = [one for one in table.wire if isinstance(one, AppendReply)]
    assert [(one.accepted, one.index) for one in replies] == [(True, 1)]


def append_of_the_past(raft_class: type[Raft]) -> None:
    """An append of a deposed leader arrives late, at a node that follows the new one."""
    table = Table({B: log_of(3, term=3)}, raft_class=raft_class)
    old = Entry(2, 2, EntryKind.COMMAND, b"old")
    table.give(B, Receive(table.now, Append(A, B, 2, 1, 1, (old,), 0, 0)))
    assert table.terms(B) == [3]
    assert [(one.term, one.accepted) for one in table.wire if isinstance(one, AppendReply)] == [(3, False)]


def vote_that_was_not_written(raft_class: type[Raft]) -> None:
    """One voter and a learner: the voter leads, tells the learner, and crashes before its vote is durable."""
    table = Table({A: log_of(voters="a")}, raft_class=raft_class)
    table.boot(B, NOTHING)
    table.elect(A)
    table.give(A, ChangeMembership(table.now, 1, members("a", "b")))
    table.deliver()
    journal = journal_of(table, A)
    said: dict[tuple[int, int], bytes] = {}
    for life in (2, 3):
        table.boot(A, journal, nonce=life)
        table.by_hand = {A}
        table.tick(A)
        table.propose(A, f"of life {life}")
        table.tick(A)
        for message in table.take(everything):
            for entry in getattr(message, "entries", ()):
                place = (entry.index, entry.term)
                assert said.setdefault(place, entry.data) == entry.data, "one place, one term, two entries"
        written = [one for one in table.unsynced[A] if isinstance(one, Persist)]
        assert written[0].hard_state == HardState(journal.hard_state.term + 1, A)


def two_changes_at_once(raft_class: type[Raft]) -> None:
    """Two voters more in one go: the new majority need not share anybody with the old one."""
    table = Table(raft_class=raft_class)
    table.boot(D, NOTHING)
    table.boot(E, NOTHING)
    table.elect(A)
    table.tick(A)
    table.deliver()
    table.give(A, ChangeMembership(table.now, 1, members("abcd")))
    table.give(A, ChangeMembership(table.now, 2, members("abcde")))
    for _ in range(4):
        table.tick(A)
        table.deliver(among="ade")
        table.drop()
    while table[B].role is not Role.LEADER:
        table.tick(B)
        table.deliver(among="bc")
    table.deliver(among="bc")
    state_machines_agree(table)


def snapshot_that_comes_too_late(raft_class: type[Raft]) -> None:
    """While a received snapshot is checked, the log itself arrives and goes further."""
    start = Start(B, SETTINGS, log_of(), 100.0, 0.5, 1)
    raft = raft_class(start)
    meta = SnapshotMeta(3, 2, members("abc"), 4, 0)
    entries = tuple(Entry(index, 2, EntryKind.COMMAND, b"x") for index in range(2, 7))
    raft.handle(Receive(100.1, SnapshotChunk(A, B, 2, meta, 0, b"data")))
    raft.handle(Receive(100.2, Append(A, B, 2, 1, 1, entries, 6, 0)))
    raft.handle(SnapshotReceived(100.3, meta))
    assert (raft.commit, raft.log.last_index) == (6, 6)


SCHEDULES: dict[str, Schedule] = {
    "CountsOldTerms": figure_eight,
    "NoCheckQuorum": leader_that_hears_nobody,
    "NoPreVote": return_of_the_lost,
    "AnyLogMayLeadOncePreVoted": late_order_to_stand,
    "ChangesBeforeOwnCommit": two_half_done_changes,
    "ManyChangesAtOnce": two_changes_at_once,
    "OldSnapshotsWin": snapshot_that_comes_too_late,
    "ReadsBeforeOwnCommit": new_leader_reads,
    "ReadsWithoutRound": deposed_leader_reads,
    "AnswersOfAFormerLife": answer_of_a_former_life,
    "ProposalsDuringTransfer": proposals_while_handing_over,
    "AcknowledgesTooMuch": more_than_was_compared,
    "OldTermsAreHeard": append_of_the_past,
    "OwnVoteCountsAtOnce": vote_that_was_not_written,
}


def test_every_hidden_bug_has_a_schedule() -> None:
    assert set(SCHEDULES) == set(DIRECTED)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_is_survived(name: str) -> None:
    SCHEDULES[name](Raft)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_planted_bug_is_found(name: str) -> None:
    with pytest.raises(AssertionError):
        SCHEDULES[name](DIRECTED[name])


def test_a_stopped_leader_that_wakes_up_makes_way_at_once() -> None:
    """SIGSTOP for three election time-outs: the first thing it does is to notice that it heard nobody."""
    table = Table()
    table.elect(A)
    table.wait(3 * SETTINGS.election_seconds_max)
    table.elect(B, among="bc")
    for progress in table[A].progress.values():
        progress.active = False
    table.give(A, Tick(table.now, 0.5))
    assert table[A].role is Role.FOLLOWER


def test_requests_for_reads_of_a_leader_that_is_gone_are_not_answered() -> None:
    table = Table()
    table.elect(A)
    table.give(B, Read(table.now, 1))
    assert table.take(only(ReadRequest))
    table.tick(B, SETTINGS.election_seconds_min)
    assert not table.of(B, ReadReady)

"""The rules of "In Search of an Understandable Consensus Algorithm" (Ongaro, Ousterhout, 2014), one by one.

Each test is named after the section and says the rule. Where the thesis goes further (PreVote, changes of
the membership, transfer, reads), its section is named.
"""

from __future__ import annotations

import pytest

from sllmd.cluster.raft.entries import Entry, EntryKind, HardState
from sllmd.cluster.raft.events import Persist, Receive, Role, Send
from sllmd.cluster.raft.messages import Append, AppendReply, Message, VoteReply, VoteRequest
from tests.cluster.play import SETTINGS, A, B, C, D, E, Table, log_of, only

# --- 5.1 basics ---


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE, Role.LEADER])
def test_5_1_a_higher_term_makes_a_follower(role: Role) -> None:
    """If a server sees a higher term, it updates its own; a candidate or leader becomes a follower."""
    table = Table()
    if role is Role.LEADER:
        table.elect(A)
    elif role is Role.CANDIDATE:
        table[A].start_election(transfer=False)
    term = table[A].term + 3
    table.give(A, Receive(table.now, Append(B, A, term, 0, 0, (), 0, 0)))
    assert (table[A].role, table[A].term, table[A].leader) == (Role.FOLLOWER, term, B)


def test_5_1_a_request_of_an_old_term_is_rejected() -> None:
    """A server that gets a request with a stale term rejects it, and says its own term."""
    table = Table({A: log_of(term=5)})
    table.give(A, Receive(table.now, Append(B, A, 4, 0, 0, (), 0, 0)))
    table.give(A, Receive(table.now, VoteRequest(C, A, 4, 9, 4, False)))
    replies = [
        (type(one), one.term, getattr(one, "granted", getattr(one, "accepted", None))) for one in table.wire
    ]
    assert replies == [(AppendReply, 5, False), (VoteReply, 5, False)]


# --- 5.2 leader election ---


def test_5_2_everybody_starts_as_a_follower() -> None:
    assert {raft.role for raft in Table().nodes.values()} == {Role.FOLLOWER}


def test_5_2_a_leader_sends_heartbeats_to_everybody() -> None:
    table = Table()
    table.elect(A)
    table.drop()
    table.tick(A)
    assert sorted(one.target for one in table.wire if isinstance(one, Append)) == [B, C]


def test_5_2_a_follower_that_hears_nothing_stands_for_election() -> None:
    """It increments its term, votes for itself, and asks all the others in parallel."""
    table = Table()
    table.by_hand.add(A)
    table.tick(A)
    table.deliver()
    assert (table[A].role, table[A].term, table[A].vote) == (Role.CANDIDATE, 2, A)
    table.sync(A, 1)
    assert sorted(one.target for one in table.wire if isinstance(one, VoteRequest)) == [B, C]


@pytest.mark.parametrize(
    ("voters", "granted", "role"),
    [
        ("a", "", Role.LEADER),
        ("abc", "b", Role.LEADER),
        ("abcde", "bc", Role.LEADER),
        ("abcde", "b", Role.CANDIDATE),
        ("abc", "", Role.CANDIDATE),
    ],
)
def test_5_2_a_majority_of_all_elects(voters: str, granted: str, role: Role) -> None:
    table = Table({A: log_of(voters=voters)})
    table.boot(B)  # a table without them would lose their messages; only A matters
    raft = table[A]
    raft.start_election(transfer=False)
    table.wire.clear()
    for action in raft.out.flush(raft.hard_state(), raft.commit):
        table._carry_out(A, action)
    for voter in granted:
        table.give(A, Receive(table.now, VoteReply(type(A)(voter), A, raft.term, True)))
    assert raft.role is role


@pytest.mark.parametrize(("vote", "candidate", "granted"), [(None, B, True), (B, B, True), (C, B, False)])
def test_5_2_one_vote_per_term_first_come_first_served(
    vote: str | None, candidate: str, granted: bool
) -> None:
    table = Table({A: log_of(term=2, vote=vote)})  # type: ignore[arg-type]
    table.give(A, Receive(table.now, VoteRequest(candidate, A, 2, 9, 2, False)))  # type: ignore[arg-type]
    assert [one.granted for one in table.wire if isinstance(one, VoteReply)] == [granted]


def test_5_2_a_candidate_gives_way_to_a_leader_of_its_term() -> None:
    table = Table()
    table[A].start_election(transfer=False)
    table.give(A, Receive(table.now, Append(B, A, 2, 0, 0, (), 0, 0)))
    assert (table[A].role, table[A].leader) == (Role.FOLLOWER, B)


def test_5_2_a_candidate_does_not_give_way_to_an_older_leader() -> None:
    table = Table()
    table[A].start_election(transfer=False)
    table.give(A, Receive(table.now, Append(B, A, 1, 0, 0, (), 0, 0)))
    assert table[A].role is Role.CANDIDATE


def test_5_2_time_outs_are_spread_over_the_interval() -> None:
    table = Table()
    waits = []
    for jitter in (0.0, 0.25, 0.999):
        table[A].jitter = jitter
        table[A].reset_election_timer()
        waits.append(table[A].election_deadline - table[A].now)
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(SETTINGS.election_seconds_min)
    assert waits[-1] == pytest.approx(SETTINGS.election_seconds_max, rel=0.01)


# --- 5.3 log replication ---


def test_5_3_an_entry_is_committed_once_a_majority_has_it() -> None:
    table = Table({node: log_of(voters="abcde") for node in (A, B, C, D, E)})
    table.elect(A)
    table.propose(A, "x")
    table.deliver(among="ab")
    assert table.applied(A) == []
    table.deliver(among="abc")
    assert table.applied(A) == ["x"]


def test_5_3_a_follower_learns_what_is_committed_and_applies_it_in_order() -> None:
    table = Table()
    table.elect(A)
    table.propose(A, "x", "y")
    table.propose(A, "z")
    table.deliver()
    assert [table.applied(node) for node in (A, B, C)] == [["x", "y", "z"]] * 3


@pytest.mark.parametrize(
    ("previous", "accepted"),
    [((1, 1), True), ((2, 2), True), ((3, 2), True), ((4, 2), False), ((3, 1), False), ((2, 1), False)],
)
def test_5_3_the_consistency_check(previous: tuple[int, int], accepted: bool) -> None:
    """A follower without an entry of that index and term refuses."""
    table = Table({A: log_of(2, 2)})
    table.give(A, Receive(table.now, Append(B, A, 2, *previous, (), 0, 0)))
    assert [one.accepted for one in table.wire if isinstance(one, AppendReply)] == [accepted]


FIGURE_7 = {
    "a": (1, 1, 1, 4, 4, 5, 5, 6, 6),
    "b": (1, 1, 1, 4),
    "c": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
    "d": (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
    "e": (1, 1, 1, 4, 4, 4, 4),
    "f": (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
}


@pytest.mark.parametrize("follower", FIGURE_7)
def test_5_3_figure_7_a_leader_brings_every_log_to_its_own(follower: str) -> None:
    """Missing entries, entries too many, and both: the follower's log becomes the leader's."""
    leader = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
    journals = {A: log_of(*leader[1:], term=7), B: log_of(*FIGURE_7[follower][1:], term=7), C: log_of(term=7)}
    table = Table(journals)
    table.elect(A, among="ac")
    for _ in range(3):
        table.tick(A)
        table.deliver()
    assert table.terms(B) == table.terms(A)
    assert table.terms(A)[:9] == list(leader[1:])
    assert table[B].commit == table[A].commit == table[A].log.last_index


def test_5_3_a_leader_never_overwrites_its_own_log() -> None:
    table = Table({A: log_of(2, 2), B: log_of(), C: log_of()})
    table.elect(A)
    assert table.terms(A) == [2, 2, 3]


def test_5_3_matching_entries_are_not_cut_by_an_old_message() -> None:
    """Only a conflict truncates: an append that came twice, or late, must not."""
    table = Table({A: log_of(2, 2, 2)})
    again = table[A].log.range(2, 2)
    table.give(A, Receive(table.now, Append(B, A, 2, 1, 1, again, 0, 0)))
    assert table.terms(A) == [2, 2, 2]


# --- 5.4 safety ---


@pytest.mark.parametrize(
    ("voter", "candidate", "granted"),
    [
        ((2, 2), (3, 2), True),
        ((2, 2), (2, 3), True),
        ((2, 2, 2), (3,), True),
        ((3,), (2, 2, 2), False),
        ((2, 2), (2,), False),
    ],
)
def test_5_4_1_a_vote_goes_to_a_log_at_least_as_up_to_date(
    voter: tuple[int, ...], candidate: tuple[int, ...], granted: bool
) -> None:
    """The later last term wins; with equal terms, the longer log. (The founding entry is common.)"""
    candidate_log = Table({B: log_of(*candidate)})[B].log
    table = Table({A: log_of(*voter)})
    request = VoteRequest(B, A, 9, candidate_log.last_index, candidate_log.last_term, False)
    table.give(A, Receive(table.now, request))
    shorter_with_later_term = candidate == (2, 3)
    assert [one.granted for one in table.wire if isinstance(one, VoteReply)] == [
        granted or shorter_with_later_term
    ]


def test_5_4_2_only_entries_of_the_own_term_are_committed_by_counting() -> None:
    table = Table({A: log_of(2, 2), B: log_of(2, 2), C: log_of()})
    table.elect(A, among="ab")
    table.drop()
    raft = table[A]
    before = raft.commit
    raft.progress[B].match = 3
    raft.out.durable_index = 3
    raft.maybe_commit()
    assert raft.commit == before
    raft.progress[B].match = raft.out.durable_index = raft.log.last_index
    raft.maybe_commit()
    assert raft.commit == raft.log.last_index


# --- what is on the disk before it is said ---


def promises(message: Message) -> bool:
    return isinstance(message, (VoteRequest, VoteReply, AppendReply))


def test_figure_2_state_is_updated_on_disk_before_answering() -> None:
    """Votes, candidacies and acknowledgements leave inside the ``Persist`` that makes them true."""
    table = Table()
    table.by_hand = {A, B, C}
    first = Entry(2, 2, EntryKind.COMMAND, b"x")
    actions = table.give(A, Receive(table.now, Append(B, A, 2, 1, 1, (first,), 0, 0)))
    (persist,) = [action for action in actions if isinstance(action, Persist)]
    assert (persist.hard_state, persist.entries) == (HardState(2, None), (first,))
    assert [type(one) for one in persist.messages] == [AppendReply]
    assert not [one for one in actions if isinstance(one, Send) and promises(one.message)]


def test_figure_2_an_answer_waits_for_earlier_writes_too() -> None:
    """A heartbeat changes nothing, but its answer speaks of entries that are still on their way."""
    table = Table()
    table.by_hand = {A}
    first = Entry(2, 2, EntryKind.COMMAND, b"x")
    table.give(A, Receive(table.now, Append(B, A, 2, 1, 1, (first,), 0, 0)))
    table.give(A, Receive(table.now, Append(B, A, 2, 2, 2, (), 0, 0)))
    assert table.wire == []
    table.sync(A)
    assert [one.index for one in table.wire if isinstance(one, AppendReply)] == [2, 2]


def test_a_leader_counts_its_own_disk_only_when_it_is_durable() -> None:
    table = Table()
    table.elect(A)
    table.by_hand = {A}
    table.propose(A, "x")
    table.deliver(only(Append), among="ab", rounds=1)
    table.drop(lambda one: one.target != A)
    commit = table[A].commit
    table.drop()
    assert table[A].commit == commit
    table.sync(A)
    table.tick(A)
    table.deliver(among="ab")
    assert table.applied(A) == ["x"]


# --- 8 clients; thesis 6.4 ---


def test_8_a_new_leader_commits_an_entry_of_its_own_first() -> None:
    table = Table({A: log_of(2), B: log_of(2), C: log_of(2)})
    table.elect(A)
    last = table[A].log.range(table[A].log.last_index, table[A].log.last_index)[0]
    assert (last.kind, last.term) == (EntryKind.NOOP, 3)
    assert table[A].commit == last.index

"""Short plays: what happens when a leader is lost, a node is new, a change is asked for, a read is due."""

from __future__ import annotations

import pytest

from sllmd.cluster.raft.entries import NOTHING, Entry, EntryKind, Restored, forced
from sllmd.cluster.raft.events import (
    Appended,
    ChangeMembership,
    ChunkUnavailable,
    JournalLost,
    LeadershipChanged,
    MembershipChanged,
    Persist,
    Proposal,
    Propose,
    Read,
    ReadChunk,
    ReadReady,
    ReadRefused,
    Receive,
    Refusal,
    Refused,
    Restore,
    Role,
    SnapshotRejected,
    Stopped,
    Tick,
    TransferFailed,
    TransferLeadership,
    WriteChunk,
)
from sllmd.cluster.raft.messages import (
    Append,
    AppendReply,
    PreVoteReply,
    PreVoteRequest,
    SnapshotChunk,
    TimeoutNow,
    VoteRequest,
)
from sllmd.cluster.raft.progress import ProgressState
from tests.cluster.play import SETTINGS, A, B, C, D, Table, log_of, members, only

FEW = SETTINGS.model_copy(
    update={"append_entries_max": 2, "inflight_appends_max": 3, "chunk_bytes": 300, "trailing_entries": 0}
)


# --- elections ---


def test_a_cluster_of_one_leads_at_once_and_commits_alone() -> None:
    table = Table({A: log_of(voters="a")})
    assert table[A].deadline_seconds() == table.now  # nobody is there whose word it would wait for
    table.give(A, Tick(table.now, 0.5))
    table.propose(A, "x")
    assert table.applied(A) == ["x"]
    assert [(one.leader, one.role) for one in table.of(A, LeadershipChanged)][-1] == (A, Role.LEADER)  # type: ignore[attr-defined]


def test_a_node_without_a_journal_never_stands() -> None:
    table = Table({})
    table.boot(D, NOTHING)
    assert table[D].deadline_seconds() == float("inf")


def test_nobody_is_helped_against_a_leader_that_was_just_heard() -> None:
    """The vote lease: neither a pre-vote nor a vote, and not even the candidate's term is taken notice of."""
    table = Table()
    table.elect(A)
    table.deliver()
    term = table[B].term
    table.give(B, Receive(table.now, PreVoteRequest(C, B, term + 1, 99, term)))
    table.give(B, Receive(table.now, VoteRequest(C, B, term + 1, 99, term, False)))
    assert [one.granted for one in table.wire if isinstance(one, PreVoteReply)] == [False]
    assert (table[B].term, table[B].vote) == (term, A)


def test_a_leader_that_is_not_heard_by_a_majority_gives_up_within_two_time_outs() -> None:
    table = Table()
    table.elect(A)
    begun = table.now
    while table[A].role is Role.LEADER:
        table.tick(A)
        table.drop()
    assert table.now - begun <= 2 * SETTINGS.election_seconds_min + 0.01


def test_a_process_that_was_stopped_listens_before_it_stands() -> None:
    table = Table()
    table.elect(A)
    table.deliver()
    table.wait(30)
    table.give(B, Tick(table.now, 0.5))
    assert (table[B].role, table.wire) == (Role.FOLLOWER, [])
    table.tick(B)
    assert table[B].role is Role.PRECANDIDATE


def test_a_message_for_somebody_else_is_nobodys() -> None:
    table = Table()
    table.give(A, Receive(table.now, Append(C, B, 9, 0, 0, (), 0, 0)))
    assert table[A].term == 1


# --- flow control ---


def test_the_pipeline_is_full_at_its_limit_and_flows_on_with_the_answers() -> None:
    table = Table(settings=FEW)
    table.elect(A)
    table.deliver()
    table.propose(A, *(f"c{number}" for number in range(20)))
    to_b = [one for one in table.wire if isinstance(one, Append) and one.target == B]
    assert [len(one.entries) for one in to_b] == [2, 2, 2]
    assert table[A].progress[B].inflight == 3
    table.deliver(lambda one: one.target == B, rounds=1)
    table.deliver(lambda one: one.source == B, rounds=1)
    assert table[A].progress[B].inflight == 3
    table.deliver()
    assert table.applied(B) == [f"c{number}" for number in range(20)]
    assert table[A].progress[B].inflight == 0


def test_a_hundred_acknowledgements_do_not_resend_what_is_on_its_way() -> None:
    table = Table()
    table.elect(A)
    for number in range(100):
        table.propose(A, f"c{number}")
    sent = 0
    for _ in range(1000):
        sent += sum(len(one.entries) for one in table.wire if isinstance(one, Append))
        if not table.deliver(rounds=1):
            break
    assert table.applied(C)[-1] == "c99"
    assert sent <= 2 * 101 + 2 * 8 * 2, "each entry once to each follower, but for the first probes"


def test_lost_appends_are_found_by_the_next_heartbeat() -> None:
    table = Table()
    table.elect(A)
    table.propose(A, "x")
    table.drop()
    table.tick(A)
    table.deliver()
    assert table.applied(B) == table.applied(C) == ["x"]


def test_a_dead_node_gets_heartbeats_and_no_more() -> None:
    table = Table(settings=FEW)
    table.elect(A)
    table.deliver()
    table.down.add(C)
    table.propose(A, *(f"c{number}" for number in range(6)))
    end = table.now + 3 * SETTINGS.election_seconds_max
    while table.now < end:
        table.tick(A)
        table.deliver(among="ab")
        table.drop()
    table.tick(A)
    assert [one.entries for one in table.wire if isinstance(one, Append) and one.target == C] == [()]
    table.compact(A)
    asked = len(table.of(A, ReadChunk))
    for _ in range(5):
        table.tick(A)
        table.deliver(among="ab")
        table.drop()
    assert len(table.of(A, ReadChunk)) <= asked + 1
    table.down.discard(C)
    for _ in range(8):
        table.tick(A)
        table.deliver()
    assert table[C].commit == table[A].commit


def test_a_large_entry_goes_alone() -> None:
    settings = SETTINGS.model_copy(update={"append_bytes_max": 100})
    table = Table(settings=settings)
    table.elect(A)
    table.deliver()
    table.propose(A, "s" * 60, "s" * 60, "l" * 500, "s")
    to_b = [one for one in table.wire if isinstance(one, Append) and one.target == B]
    assert [len(one.entries) for one in to_b] == [1, 1, 1, 1]


def test_proposals_beyond_the_limit_are_refused_as_busy() -> None:
    settings = SETTINGS.model_copy(update={"uncommitted_bytes_max": 1000})
    table = Table(settings=settings)
    table.elect(A)
    table.deliver()
    table.propose(A, "x" * 900)
    table.propose(A, "y" * 200)
    assert [one.reason for one in table.of(A, Refused)] == [Refusal.BUSY]  # type: ignore[attr-defined]
    table.deliver()
    table.propose(A, "y" * 200)
    table.deliver()
    assert [command[0] for command in table.applied(A)] == ["x", "y"]


def test_a_proposal_is_told_its_place_or_who_to_ask() -> None:
    table = Table()
    table.elect(A)
    table.deliver()
    table.give(A, Propose(table.now, (Proposal(5, b"x"), Proposal(6, b"y"))))
    assert [(one.proposal_id, one.index) for one in table.of(A, Appended)] == [(5, 3), (6, 4)]  # type: ignore[attr-defined]
    table.propose(B, "z")
    assert [(one.reason, one.leader) for one in table.of(B, Refused)] == [(Refusal.NOT_LEADER, A)]  # type: ignore[attr-defined]


# --- membership ---


def test_a_learner_gets_everything_and_counts_for_nothing() -> None:
    table = Table({A: log_of(voters="a")})
    table.boot(B, NOTHING)
    table.elect(A)
    table.give(A, ChangeMembership(table.now, 1, members("a", "b")))
    table.propose(A, "x")
    assert table.applied(A) == ["x"], "committed without the learner"
    for _ in range(3):
        table.deliver()
        table.tick(A)
    assert table.applied(B) == ["x"]
    assert table[B].deadline_seconds() == float("inf"), "a learner never stands"
    assert table.of(B, MembershipChanged)[-1].membership == members("a", "b")  # type: ignore[attr-defined]


def test_a_learner_becomes_a_voter_and_a_voter_can_be_removed() -> None:
    table = Table()
    table.boot(D, NOTHING)
    table.elect(A)
    table.deliver()
    for wanted in (members("abc", "d"), members("abcd"), members("acd")):
        table.give(A, ChangeMembership(table.now, 1, wanted))
        for _ in range(3):
            table.deliver()
            table.tick(A)
    assert table[D].membership == members("acd")
    assert table[D].is_voter
    assert B not in table[A].progress


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [(members("abcde"), Refusal.INVALID), (members(""), Refusal.INVALID), (members("abd"), Refusal.INVALID)],
)
def test_only_one_voter_comes_or_goes_at_a_time(wanted: object, reason: Refusal) -> None:
    table = Table()
    table.elect(A)
    table.deliver()
    table.give(A, ChangeMembership(table.now, 1, wanted))  # type: ignore[arg-type]
    assert [one.reason for one in table.of(A, Refused)] == [reason]  # type: ignore[attr-defined]


def test_a_change_waits_for_the_one_before_it_and_for_the_leaders_own_entry() -> None:
    table = Table()
    table.tick(A)
    table.deliver(lambda one: not isinstance(one, Append))
    assert table[A].role is Role.LEADER
    table.give(A, ChangeMembership(table.now, 1, members("ab")))
    table.deliver()
    table.give(A, ChangeMembership(table.now, 2, members("abc", "d")))
    table.give(A, ChangeMembership(table.now, 3, members("ab")))
    reasons = [one.reason for one in table.of(A, Refused)]  # type: ignore[attr-defined]
    assert reasons == [Refusal.NOT_READY, Refusal.CHANGE_PENDING]


def test_a_leader_that_removes_itself_leads_until_that_is_committed() -> None:
    table = Table()
    table.elect(A)
    table.deliver()
    table.give(A, ChangeMembership(table.now, 1, members("bc")))
    assert table[A].role is Role.LEADER
    table.deliver()
    assert table[A].role is Role.FOLLOWER
    assert table[A].deadline_seconds() == float("inf")
    table.elect(B, among="bc")


def test_a_voter_whose_removal_is_not_committed_stands_all_the_same() -> None:
    """Thesis §4.2.2. It has the longest log: nobody else can win, and by that log it has no vote.

    (Found by the simulator, seed 2016: a third node's disk was gone for good, and nobody led any more.)
    """
    table = Table({node: log_of(voters="abcd") for node in (A, B, C, D)})
    table.elect(A)
    table.tick(A)
    table.deliver()
    table.give(A, ChangeMembership(table.now, 1, members("bcd")))
    table.drop()
    table.down.add(D)
    table[A].step_down(table[A].term, None)
    assert not table[A].is_voter
    for _ in range(3):
        if table[A].may_stand:
            table.tick(A)
            table.deliver()
    assert table[A].role is Role.FOLLOWER
    assert table[B].membership == members("bcd")
    assert table[A].deadline_seconds() == float("inf"), "its removal is committed: it stands no more"
    table.elect(B, among="bc")


def test_a_change_that_is_overwritten_is_no_longer_in_force() -> None:
    table = Table()
    table.elect(A)
    table.deliver()
    table.give(A, ChangeMembership(table.now, 1, members("abc", "d")))
    table.drop()
    while table[B].role is not Role.LEADER:
        table.tick(B)
        table.deliver(among="bc")
    table.propose(B, "x")
    table.tick(B)
    table.deliver()
    assert table[A].membership == members("abc")
    assert table.of(A, MembershipChanged)[-1].membership == members("abc")  # type: ignore[attr-defined]


def test_the_status_says_how_far_a_learner_is_behind() -> None:
    table = Table({A: log_of(voters="a")})
    table.boot(B, NOTHING)
    table.elect(A)
    table.give(A, ChangeMembership(table.now, 1, members("a", "b")))
    table.propose(A, "x", "y")
    status = table[A].status()
    assert (status.leader, status.epoch, status.membership_committed) == (A, 2, True)
    assert [(peer.node, peer.lag_entries) for peer in status.peers] == [(B, 5)]
    for _ in range(3):
        table.deliver()
        table.tick(A)
    assert [peer.lag_entries for peer in table[A].status().peers] == [0]


# --- snapshots ---


def far_behind() -> Table:
    """C was away while A compacted its log."""
    table = Table(settings=FEW)
    table.elect(A)
    table.deliver()
    for number in range(10):
        table.propose(A, f"c{number}")
        table.deliver(among="ab")
        table.drop()
    table.compact(A)
    return table


def test_a_node_that_is_too_far_behind_gets_a_snapshot_in_parts() -> None:
    table = far_behind()
    for _ in range(4):
        table.tick(A)
        table.deliver()
    written = table.of(C, WriteChunk)
    assert [one.offset for one in written] == [0, 300, 600, 900]  # type: ignore[attr-defined]
    (restore,) = table.of(C, Restore)
    assert restore.meta.index == table[A].log.snapshot.index  # type: ignore[union-attr, attr-defined]
    table.propose(A, "after")
    table.deliver()
    assert table.applied(C) == ["after"]
    assert table[A].progress[C].state is ProgressState.REPLICATE


def test_the_log_is_reset_in_the_persist_that_acknowledges_it() -> None:
    table = far_behind()
    for _ in range(4):
        table.tick(A)
        table.deliver()
    (persist,) = [one for one in table.of(C, Persist) if one.snapshot is not None]  # type: ignore[attr-defined]
    acknowledged = [one.index for one in persist.messages if isinstance(one, AppendReply)]  # type: ignore[attr-defined]
    assert acknowledged == [persist.snapshot.index]  # type: ignore[attr-defined]


def test_a_part_that_got_lost_is_sent_again_and_a_doubled_one_is_written_once() -> None:
    table = far_behind()
    lost = 0
    for _ in range(20):
        table.tick(A)
        table.deliver(lambda one: not isinstance(one, SnapshotChunk))
        chunks = table.take(only(SnapshotChunk))
        if lost < 3 and chunks:
            lost += 1
            continue
        table.wire.extend([*chunks, *chunks])
        table.deliver()
    assert [one.offset for one in table.of(C, WriteChunk)] == [0, 300, 600, 900]  # type: ignore[attr-defined]
    assert table[C].commit == table[A].commit


def test_a_snapshot_whose_bytes_are_wrong_is_sent_once_more() -> None:
    table = far_behind()
    meta = table[A].log.snapshot
    assert meta is not None
    term = table[A].term
    raft = table[C]
    raft.handle(Receive(table.now, SnapshotChunk(A, C, term, meta, 0, bytes(1000))))
    raft.handle(SnapshotRejected(table.now, meta))
    actions = raft.handle(Receive(table.now, SnapshotChunk(A, C, term, meta, 0, bytes(1000))))
    assert [type(one).__name__ for one in actions if type(one).__name__ != "Send"] == [
        "WriteChunk",
        "FinishSnapshot",
    ]


def test_a_snapshot_that_is_gone_gives_way_to_the_newest() -> None:
    table = far_behind()
    table.tick(A)
    table.deliver(lambda one: not isinstance(one, SnapshotChunk))
    table.drop()
    old = table[A].progress[C].snapshot
    assert old is not None
    table.propose(A, "more")
    table.deliver(among="ab")
    new = table.compact(A)
    table.give(A, ChunkUnavailable(table.now, C, old))
    for _ in range(6):
        table.tick(A)
        table.deliver()
    assert [one.meta for one in table.of(C, Restore)] == [new]  # type: ignore[attr-defined]


def test_entries_stay_behind_a_snapshot_for_those_who_are_nearly_there() -> None:
    settings = SETTINGS.model_copy(update={"trailing_entries": 5})
    table = Table(settings=settings)
    table.elect(A)
    table.deliver()
    table.propose(A, *(f"c{number}" for number in range(20)))
    table.deliver()
    table.compact(A)
    assert table[A].log.base_index == table[A].applied - 5


def test_reads_do_not_hurry_a_snapshot() -> None:
    """A round of reads is a word to everybody: it must not send again what a heartbeat sends again."""
    table = far_behind()
    table.tick(A)
    table.deliver(lambda one: not isinstance(one, SnapshotChunk))
    table.drop()
    asked = len(table.of(A, ReadChunk))
    assert table[A].progress[C].state is ProgressState.SNAPSHOT
    for number in range(20):
        table.give(A, Read(table.now, number))
        table.deliver(lambda one: not isinstance(one, SnapshotChunk))
    assert len(table.of(A, ReadReady)) == 20
    assert len(table.of(A, ReadChunk)) == asked


# --- reads ---


def test_a_read_on_the_leader_takes_one_round() -> None:
    table = Table()
    table.elect(A)
    table.deliver()
    table.give(A, Read(table.now, 1))
    assert not table.of(A, ReadReady)
    table.deliver(among="ab")
    assert [one.read_id for one in table.of(A, ReadReady)] == [1]  # type: ignore[attr-defined]


def test_many_reads_share_rounds() -> None:
    table = Table()
    table.elect(A)
    table.deliver()
    for number in range(100):
        table.give(A, Read(table.now, number))
    sent = sum(isinstance(one, Append) for one in table.wire)
    assert sent == 2, "one round is on its way, all later reads wait for the next"
    table.deliver()
    assert len(table.of(A, ReadReady)) == 100
    assert table[A].round == 2


def test_a_follower_reads_what_the_leader_had_committed() -> None:
    table = Table()
    table.elect(A)
    table.deliver()
    table.propose(A, "x")
    table.deliver(among="ac")
    table.give(B, Read(table.now, 1))
    table.drop(lambda one: isinstance(one, Append) and one.target == B)
    table.deliver(lambda one: not (isinstance(one, Append) and one.target == B))
    assert not table.of(B, ReadReady), "the index is known, the entry is not here yet"
    table.drop()
    table.tick(A)
    table.deliver()
    assert table.applied(B) == ["x"]
    assert [one.read_id for one in table.of(B, ReadReady)] == [1]  # type: ignore[attr-defined]


def test_a_read_alone_needs_no_round() -> None:
    table = Table({A: log_of(voters="a")})
    table.elect(A)
    table.give(A, Read(table.now, 1))
    assert len(table.of(A, ReadReady)) == 1


def test_reads_that_cannot_be_answered_are_refused() -> None:
    table = Table()
    table.give(B, Read(table.now, 1))
    table.elect(A)
    table.deliver()
    table.give(B, Read(table.now, 2))
    table.drop()
    table.tick(B, SETTINGS.election_seconds_min)
    table.give(A, Read(table.now, 3))
    table.give(A, Receive(table.now, Append(C, A, 9, 0, 0, (), 0, 0)))
    refused = [(one.read_id, one.reason) for node in (B, A) for one in table.of(node, ReadRefused)]  # type: ignore[attr-defined]
    assert refused == [(1, Refusal.NO_LEADER), (2, Refusal.TIMEOUT), (3, Refusal.LEADER_CHANGED)]


# --- handing over ---


def test_a_leader_hands_over_without_waiting_for_a_time_out() -> None:
    table = Table()
    table.elect(A)
    table.deliver()
    begun = table.now
    table.give(A, TransferLeadership(table.now, B))
    table.deliver()
    assert (table.leaders(), table.now) == ({B}, begun)


def test_the_target_is_brought_up_to_date_first() -> None:
    table = Table()
    table.elect(A)
    table.deliver()
    table.propose(A, "x")
    table.deliver(among="ac")
    table.give(A, TransferLeadership(table.now, B))
    assert not [one for one in table.wire if isinstance(one, TimeoutNow)]
    table.deliver()
    assert table.leaders() == {B}
    assert table.applied(B) == ["x"]


def test_a_hand_over_that_does_not_happen_is_given_up() -> None:
    table = Table()
    table.elect(A)
    table.deliver()
    table.give(A, TransferLeadership(table.now, B))
    while not table.of(A, TransferFailed):
        table.drop(lambda one: B in (one.source, one.target))
        table.deliver()
        table.tick(A)
    table.propose(A, "x")
    table.deliver(among="ac")
    assert table.applied(A) == ["x"]


@pytest.mark.parametrize(("target", "reason"), [(A, Refusal.INVALID), (D, Refusal.INVALID)])
def test_only_another_voter_can_take_over(target: str, reason: Refusal) -> None:
    table = Table()
    table.elect(A)
    table.give(A, TransferLeadership(table.now, target))  # type: ignore[arg-type]
    assert [one.reason for one in table.of(A, Refused)] == [reason]  # type: ignore[attr-defined]


# --- the disk ---


def test_a_node_without_a_disk_steps_down_and_says_nothing_more() -> None:
    table = Table()
    table.elect(A)
    table.deliver()
    table.give(A, JournalLost(table.now, "Input/output error"))
    assert [one.reason for one in table.of(A, Stopped)] == ["Input/output error"]  # type: ignore[attr-defined]
    assert table[A].handle(Tick(table.now + 60, 0.5)) == []
    assert table.propose(A, "x") == []
    table.elect(B, among="bc")


def test_a_write_that_was_overtaken_does_not_vouch_for_what_replaced_it() -> None:
    """Entry 2 is written, replaced, and the first write finishes last: nothing of the second is durable."""
    table = Table({A: log_of()})
    table.by_hand = {A}
    table.give(A, Receive(table.now, Append(B, A, 2, 1, 1, (Entry(2, 2, EntryKind.COMMAND, b"old"),), 0, 0)))
    table.give(A, Receive(table.now, Append(C, A, 3, 1, 1, (Entry(2, 3, EntryKind.COMMAND, b"new"),), 2, 0)))
    table.sync(A, 1)
    assert table[A].out.durable_index == 1
    assert table.applied(A) == []
    table.sync(A)
    assert table.applied(A) == ["new"]


# --- when a majority is lost for good ---


def test_one_node_goes_on_alone_with_all_that_it_has() -> None:
    table = Table()
    table.elect(A)
    table.deliver()
    table.propose(A, "committed")
    table.deliver()
    table.propose(A, "not committed")
    journal = Restored(table[A].hard_state(), None, table[A].log.range(1, table[A].log.last_index))
    hard_state, entries = forced(journal, A)
    table.boot(A, Restored(hard_state, None, journal.entries + entries), nonce=2)
    table.elect(A)
    assert table[A].membership == members("a")
    assert table.applied(A) == ["committed", "not committed"]
    assert table[A].term > journal.hard_state.term

"""Planted bugs: each is one line that somebody could get wrong. Every one must be found.

``HOSTS`` are found by random seeds (``test_mutants.py`` says in how many); ``DIRECTED`` ones hide from
random faults and have a schedule of their own in ``test_directed.py``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sllmd.cluster.catalogue import Catalogue, apply
from sllmd.cluster.raft import Raft
from sllmd.cluster.raft.entries import Membership
from sllmd.cluster.raft.events import Persist, Persisted, Propose, Refusal, SnapshotReceived
from sllmd.cluster.raft.messages import Append, AppendReply, PreVoteRequest, ReadReply, VoteRequest
from tests.simulation.host import Host

HOSTS: dict[str, type[Host]] = {}
DIRECTED: dict[str, type[Raft]] = {}


def host(mutant: type[Host]) -> type[Host]:
    name = mutant.__name__
    HOSTS[name] = mutant
    mutant.mutant = name  # type: ignore[attr-defined]
    return mutant


def raft(mutant: type[Raft]) -> type[Raft]:
    host(type(mutant.__name__, (Host,), {"raft_class": mutant, "__doc__": mutant.__doc__}))
    return mutant


def directed(mutant: type[Raft]) -> type[Raft]:
    DIRECTED[mutant.__name__] = mutant
    return mutant


# --- the shell breaks the ordering law ---


@host
class VoteNotWritten(Host):
    """Term and vote are not made durable."""

    def write(self, group: list[Persist]) -> None:
        super().write([Persist(one.ticket, None, one.snapshot, one.entries, one.messages) for one in group])


@host
class LogNotWritten(Host):
    """Entries are acknowledged and not made durable."""

    def write(self, group: list[Persist]) -> None:
        super().write([Persist(one.ticket, one.hard_state, one.snapshot, (), one.messages) for one in group])


@host
class SentBeforeSynced(Host):
    """Messages leave, and durability is reported, while the write is still on its way."""

    def _submit(self, job: Any) -> None:
        super()._submit(job)
        if isinstance(job, Persist):
            for message in job.messages:
                self.world.network.send(message)
            self.world.at(self.world.now, self._claim, self._life, job.ticket)

    def _claim(self, life: int, ticket: int) -> None:
        if life == self._life:
            self.handle(Persisted(self.world.now, ticket))


@host
class NeverSyncs(Host):
    """Everything is written, and nothing is synced."""

    def start(self) -> None:
        super().start()
        self.disk.syncs_lie = True


# --- election ---


@directed
class NoPreVote(Raft):
    """A node that was cut off raises the term and deposes a good leader when it is back."""

    def start_prevote(self) -> None:
        self.start_election(transfer=False)

    def has_lease(self) -> bool:
        return False


@raft
class AnyLogMayLead(Raft):
    """Neither votes nor pre-votes ask how far the candidate's log goes."""

    def candidate_is_current(self, request: VoteRequest | PreVoteRequest) -> bool:
        return True


@directed
class AnyLogMayLeadOncePreVoted(Raft):
    """Only votes do not ask; PreVote hides it almost always."""

    def candidate_is_current(self, request: VoteRequest | PreVoteRequest) -> bool:
        return isinstance(request, VoteRequest) or super().candidate_is_current(request)


@raft
class VotesForEverybody(Raft):
    """A vote does not keep another one from being given."""

    def may_vote_for(self, candidate: Any) -> bool:
        return True


@raft
class MinorityElects(Raft):
    """Quorums are one too small."""

    def is_quorum(self, count: int) -> bool:
        return count >= max(1, self.membership.quorum - 1)


@directed
class OwnVoteCountsAtOnce(Raft):
    """A candidate counts its vote for itself before it is durable."""

    def start_election(self, *, transfer: bool) -> None:
        super().start_election(transfer=transfer)
        self._own_vote_ticket = 0
        self.count_own_vote()


@directed
class NoCheckQuorum(Raft):
    """A leader that can be heard and hears nobody leads on for ever."""

    def quorum_heard(self) -> bool:
        return True


# --- replication ---


@raft
class NoConsistencyCheck(Raft):
    """Entries are taken whatever stands before them."""

    def log_agrees(self, message: Append) -> bool:
        return True


@directed
class CountsOldTerms(Raft):
    """Entries of older terms are committed by counting (Figure 8)."""

    def may_commit(self, index: int) -> bool:
        return True


@raft
class OwnDiskCountsAtOnce(Raft):
    """A leader counts entries for itself before they are durable."""

    def own_match(self) -> int:
        return self.log.last_index


@raft
class CommitsWhatLeaderSays(Raft):
    """A follower takes the leader's commit index for entries that were not checked against the leader's."""

    def on_append(self, message: Append) -> None:
        super().on_append(message)
        self.advance_commit(min(message.commit, self.log.last_index))


@raft
class TruncatesAlways(Raft):
    """An old append cuts off entries behind it that agree."""

    def _take_entries(self, message: Append) -> None:
        if message.entries and message.previous_index >= self.commit:
            first = message.entries[0].index
            if first <= self.log.last_index:
                self.log.truncate(first)
                self.out.truncated(first)
            self.log.append(message.entries)


@directed
class AcknowledgesTooMuch(Raft):
    """A follower acknowledges its whole log and not only what was compared."""

    def _reply(self, message: Append, *, accepted: bool, index: int, hint_term: int = 0) -> None:
        index = self.log.last_index if accepted else index
        super()._reply(message, accepted=accepted, index=index, hint_term=hint_term)


@raft
class LearnersCount(Raft):
    """Learners are counted for commits."""

    def quorum_match(self) -> int:
        matches = sorted(self._match_of(node) for node in self.membership.everyone)
        return matches[-min(len(matches), self.membership.quorum)] if matches else 0


@directed
class OldTermsAreHeard(Raft):
    """Appends of a deposed leader are taken."""

    def _answer_the_past(self, message: Any) -> None:
        if isinstance(message, Append) and self.role.value == "follower":
            self.on_append(message)
        else:
            super()._answer_the_past(message)


@raft
class ForgetsInflightLimit(Raft):
    """Every answer resends everything that is not acknowledged."""

    def on_append_reply(self, reply: AppendReply) -> None:
        super().on_append_reply(reply)
        progress = self.progress.get(reply.source)
        if progress is not None and progress.snapshot is None:
            progress._inflight_max = 1 << 30
            while progress.state.value == "replicate" and progress.next <= self.log.last_index:
                self._send_next(reply.source, progress, with_entries=True)


# --- membership, snapshots, reads, transfer ---


@directed
class ChangesBeforeOwnCommit(Raft):
    """A membership change is taken before an entry of the leader's own term is committed."""

    def why_no_change(self, wanted: Membership) -> Refusal | None:
        reason = super().why_no_change(wanted)
        return None if reason is Refusal.NOT_READY else reason


@directed
class ManyChangesAtOnce(Raft):
    """Changes of the membership do not wait for each other."""

    def why_no_change(self, wanted: Membership) -> Refusal | None:
        return None if wanted.is_one_step_from(self.membership) else Refusal.INVALID


@directed
class OldSnapshotsWin(Raft):
    """A received snapshot replaces a log that is further already."""

    def _has_what_it_covers(self, meta: Any) -> bool:
        return False


@raft
class KeepsLogBehindSnapshot(Raft):
    """A received snapshot moves the commit index and does not replace the state machine."""

    def on_snapshot_received(self, event: SnapshotReceived) -> None:
        super().on_snapshot_received(event)
        self.out._actions = [one for one in self.out._actions if type(one).__name__ != "Restore"]


@directed
class ReadsWithoutRound(Raft):
    """A leader answers reads without asking whether it still leads."""

    def round_confirmed(self) -> bool:
        return True


@directed
class ReadsBeforeOwnCommit(Raft):
    """A new leader answers reads with a commit index that may be behind its predecessor's."""

    @property
    def own_term_committed(self) -> bool:
        return True


@raft
class ReadsBeforeApplied(Raft):
    """A read is answered before what it must see is applied."""

    def answer_reads(self) -> None:
        self._confirmed = type(self._confirmed)((0, read_id) for _, read_id in self._confirmed)
        super().answer_reads()


@directed
class AnswersOfAFormerLife(Raft):
    """A read is answered by an answer to a request from before a restart."""

    def on_read_reply(self, reply: ReadReply) -> None:
        super().on_read_reply(replace(reply, nonce=self.nonce))


@directed
class ProposalsDuringTransfer(Raft):
    """A leader takes proposals while it hands over, so that the target never catches up."""

    def on_propose(self, event: Propose) -> None:
        target, self.transfer_target = self.transfer_target, None
        super().on_propose(event)
        self.transfer_target = target


# --- the catalogue ---


@host
class NoDeduplication(Host):
    """A repeated command is carried out again."""

    def apply(self, state: Catalogue, command: Any) -> Any:
        client = state.clients.get(str(command.client))
        if client is not None:
            client.results.clear()
        return apply(state, command)

"""Proposals, and changes of the membership one voter at a time (thesis §4.1). Pure.

A change is refused until the leader has committed an entry of its own term: without that rule two
leaders, each with another half-done change, can both find a majority.
"""

from __future__ import annotations

from sllmd.cluster.raft.entries import EntryKind, Membership, encode_membership
from sllmd.cluster.raft.events import Appended, ChangeMembership, Proposal, Propose, Refusal, Refused, Role
from sllmd.cluster.raft.handover import Handover


class Changes(Handover):
    """What a leader takes into its log."""

    def on_propose(self, event: Propose) -> None:
        """Give each command a place, or say why not."""
        took = [self._take_proposal(proposal) for proposal in event.proposals]
        if any(took):
            self.broadcast()

    def _take_proposal(self, proposal: Proposal) -> bool:
        reason = self._why_no_proposal(len(proposal.data))
        if reason is not None:
            self.out.act(Refused(proposal.proposal_id, reason, self.leader))
            return False
        entry = self.append_own(EntryKind.COMMAND, proposal.data)
        self.out.act(Appended(proposal.proposal_id, entry.index, entry.term))
        return True

    def _why_no_proposal(self, size_bytes: int) -> Refusal | None:
        if self.role is not Role.LEADER:
            return Refusal.NOT_LEADER
        if self.transfer_target is not None:
            return Refusal.TRANSFERRING
        if (
            self.uncommitted_bytes
            and self.uncommitted_bytes + size_bytes > self.settings.uncommitted_bytes_max
        ):
            return Refusal.BUSY
        return None

    def on_change_membership(self, event: ChangeMembership) -> None:
        """Put a new membership in force, or say why not."""
        reason = self._why_no_proposal(0) or self.why_no_change(event.membership)
        if reason is not None:
            self.out.act(Refused(event.proposal_id, reason, self.leader))
            return
        entry = self.append_own(EntryKind.MEMBERSHIP, encode_membership(event.membership))
        self.out.act(Appended(event.proposal_id, entry.index, entry.term))
        self.track_members()
        self.broadcast()
        self.maybe_commit()

    def why_no_change(self, wanted: Membership) -> Refusal | None:
        """The three rules, in the order in which an operator can do something about them."""
        if not wanted.is_one_step_from(self.membership):
            return Refusal.INVALID
        if not self.own_term_committed:
            return Refusal.NOT_READY
        if self.log.membership_index > self.commit:
            return Refusal.CHANGE_PENDING
        return None

    def leave_if_removed(self) -> None:
        """A leader that is no voter any more leads until that is committed, then makes way (§4.2.2)."""
        if self.role is Role.LEADER and not self.is_voter and self.log.membership_index <= self.commit:
            self.step_down(self.term, None)

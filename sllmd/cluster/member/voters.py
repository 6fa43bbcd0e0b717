"""Who shall vote: the next step from the membership that is to the one that should be. Pure.

1. One change at a time, and never one that makes a majority harder to find: who replaces comes first, who is
   replaced goes after. A dead voter that nobody can replace stays.
2. An even number of voters survives no more deaths than one fewer: it is passed through, not stopped at.
3. A node without a vote gets one only when it has the log and has been well for a while.
4. Voters are spread over zones; so are the standbys that may become voters.
5. The leader never removes itself: it hands over, and the next one removes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sllmd.cluster.member.settings import VoterSettings
from sllmd.cluster.raft.entries import Membership
from sllmd.core.ids import NodeId

NODES_FOR_THREE, NODES_FOR_FIVE = 3, 9
"""So many nodes for three and for five voters."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One node, as the leader sees it."""

    node: NodeId
    zone: str
    belongs: bool
    """It is one of the catalogue's nodes and does not want to go."""
    well_seconds: float
    """For how long it has been alive and, as a member, heard; 0: it is not."""
    silent_seconds: float
    """For how long it has not been; 0: it is."""
    lag_entries: int | None = None
    """How far its log is behind; None: it keeps none."""


@dataclass(frozen=True, slots=True)
class Change:
    """Go over to this membership."""

    members: Membership
    reason: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Give the leadership to this voter."""

    target: NodeId
    reason: str


Step = Change | HandOver


def voter_count(nodes: int, settings: VoterSettings) -> int:
    """How many voters so many nodes should have."""
    automatic = 5 if nodes >= NODES_FOR_FIVE else 3 if nodes >= NODES_FOR_THREE else 1
    wanted = settings.count or automatic
    return min(wanted, nodes if nodes % 2 else nodes - 1) if nodes else wanted


def next_step(
    members: Membership, leader: NodeId, standings: Mapping[NodeId, Standing], settings: VoterSettings
) -> Step | None:
    """What to do now; None: nothing, or nothing yet. ``standings`` has every member and every known node."""
    policy = _Policy(members, leader, standings, settings)
    return policy.promote() or policy.shrink() or policy.let_go() or policy.keep_standbys()


def best_voter(members: Membership, leader: NodeId, standings: Mapping[NodeId, Standing]) -> NodeId | None:
    """Who should lead instead of ``leader``: well, and with the least to catch up on."""
    others = [standings[node] for node in members.voters if node != leader and node in standings]
    able = [one for one in others if one.well_seconds > 0]
    able.sort(key=lambda one: (not one.belongs, one.lag_entries or 0, one.node))
    return able[0].node if able else None


class _Policy:
    """The rules, over one moment."""

    def __init__(
        self,
        members: Membership,
        leader: NodeId,
        standings: Mapping[NodeId, Standing],
        settings: VoterSettings,
    ) -> None:
        self.members = members
        self.leader = leader
        self.settings = settings
        self.standings = standings
        self.voters = [standings[node] for node in members.voters]
        self.learners = [standings[node] for node in members.learners]
        self.target = voter_count(sum(one.belongs for one in standings.values()), settings)
        self.fit = [one for one in self.voters if self._is_fit(one)]
        self.unfit = [one for one in self.voters if not self._is_fit(one)]
        self.ready = [one for one in self.learners if self._is_ready(one)]
        self.zones = Counter(one.zone for one in self.fit)

    def _is_fit(self, one: Standing) -> bool:
        return one.belongs and one.silent_seconds < self.settings.dead_seconds

    def _is_ready(self, one: Standing) -> bool:
        caught_up = one.lag_entries is not None and one.lag_entries < self.settings.lag_entries_max
        return one.belongs and caught_up and one.well_seconds >= self.settings.settle_seconds

    # --- voters ---

    def promote(self) -> Step | None:
        """A standby gets a vote: one is missing, or it would spread the voters better."""
        if not self.ready:
            return None
        best = min(self.ready, key=lambda one: (self.zones[one.zone], -one.well_seconds, one.node))
        becomes_even = len(self.voters) % 2 == 1
        if len(self.fit) < self.target:
            if becomes_even and not self.unfit and len(self.ready) < 2:
                return None
            return Change(self.members.with_voter(best.node), f"{len(self.fit)} of {self.target} voters")
        if len(self.voters) == self.target and self._is_crowded(best.zone):
            return Change(self.members.with_voter(best.node), f"voters crowd outside of `{best.zone}`")
        return None

    def _is_crowded(self, zone: str) -> bool:
        """Whether another zone has so many voters that one of this zone should take one's place."""
        return max(self.zones.values(), default=0) >= self.zones[zone] + 2

    def shrink(self) -> Step | None:
        """One voter too many goes: one that does not serve first, then one of a crowd."""
        if len(self.voters) <= self.target or not self._quorum_without_one():
            return None
        if self.unfit:
            return self._without_vote(self.unfit[0], "another voter took its place")
        others = [one for one in self.fit if one.node != self.leader]
        if not others:
            return None
        worst = max(others, key=lambda one: (self.zones[one.zone], -one.well_seconds, one.node))
        return self._without_vote(worst, f"{len(self.voters)} voters where {self.target} will do")

    def _quorum_without_one(self) -> bool:
        """Whether the voters that serve are a majority once one voter fewer counts."""
        serving = len(self.fit) if self.unfit else len(self.fit) - 1
        well = min(serving, sum(one.well_seconds > 0 for one in self.voters))
        return well >= (len(self.voters) - 1) // 2 + 1

    def let_go(self) -> Step | None:
        """A voter that wants to go, or was removed, goes even where nobody can take its place."""
        leaving = [one for one in self.unfit if not one.belongs]
        if not leaving or self._may_be_replaced() or not self._quorum_without_one():
            return None
        return self._without_vote(leaving[0], "it leaves, and nobody can take its place")

    def _may_be_replaced(self) -> bool:
        """Whether some node may yet get ready to vote."""
        voting = set(self.members.voters)
        return any(
            one.belongs and one.well_seconds > 0 and one.node not in voting for one in self.standings.values()
        )

    def _without_vote(self, one: Standing, reason: str) -> Step | None:
        if one.node == self.leader:
            target = best_voter(self.members, self.leader, self.standings)
            return HandOver(target, reason) if target is not None else None
        if self._is_fit(one):
            return Change(self.members.with_learner(one.node), reason)
        return Change(self.members.without(one.node), reason)

    # --- standbys ---

    def keep_standbys(self) -> Step | None:
        """As many learners as are asked for, and as will yet become voters."""
        gone = [one for one in self.learners if not self._is_fit(one)]
        if gone:
            return Change(self.members.without(gone[0].node), "a standby that is gone")
        wanted = self.settings.standbys + max(0, self.target - len(self.fit))
        crowds = self.zones + Counter(one.zone for one in self.learners)
        if len(self.learners) > wanted:
            worst = max(self.learners, key=lambda one: (not self._is_ready(one), crowds[one.zone], one.node))
            return Change(self.members.without(worst.node), f"{len(self.learners)} standbys of {wanted}")
        members = set(self.members.everyone)
        free = [one for one in self.standings.values() if one.node not in members]
        able = [one for one in free if one.belongs and one.well_seconds > 0]
        if len(self.learners) == wanted or not able:
            return None
        best = min(able, key=lambda one: (crowds[one.zone], -one.well_seconds, one.node))
        return Change(self.members.with_learner(best.node), f"{len(self.learners)} standbys of {wanted}")

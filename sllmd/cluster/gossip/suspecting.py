"""From suspect to dead, or back: what doubts about a member do to the table. Pure.

Who missed a refutation would believe in a death that was none. So the last second of the wait is a last call:
the suspect is probed once more, by every means, and hears of the doubt with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sllmd.cluster.gossip.core import Start
from sllmd.cluster.gossip.events import MemberForgotten
from sllmd.cluster.gossip.members import Member
from sllmd.cluster.gossip.messages import Alive, Claim, Dead, Left, Status, Suspect
from sllmd.cluster.gossip.rules import Rules, outranks
from sllmd.cluster.gossip.suspicion import Suspicion
from sllmd.core.ids import NodeId


class Suspecting(Rules):
    """Hears ``Suspect``, ``Dead`` and ``Left``."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._suspicions: dict[NodeId, Suspicion] = {}
        for member in self.table.unwell:
            self._take_over(member)

    @property
    def suspicions(self) -> Mapping[NodeId, Suspicion]:
        """Every suspect, with the members that suspect it."""
        return MappingProxyType(self._suspicions)

    def hear(self, claim: Claim) -> None:
        """Whatever is said about a member."""
        match claim:
            case Alive():
                self.hear_alive(claim)
            case Suspect():
                self.hear_suspect(claim)
            case Dead():
                self._hear_end(claim, Status.DEAD)
            case Left():
                self._hear_end(claim, Status.LEFT)

    def believe(self, member: Member) -> None:
        """A suspicion ends with whatever ends the status."""
        if member.status is not Status.SUSPECT:
            self._suspicions.pop(member.node, None)
        super().believe(member)

    def hear_suspect(self, claim: Suspect) -> None:
        """Doubts: refute them, begin to wait, or count one more who doubts."""
        if self._refuted(claim):
            return
        member = self.table.get(claim.node)
        if member is None:
            return
        if (claim.incarnation, Status.SUSPECT) == (member.incarnation, member.status):
            if self._suspicions[claim.node].confirm(claim.source):
                self._wait_for_refutation(claim.node)
                self.tell(claim)
        elif outranks(claim.incarnation, Status.SUSPECT, member):
            self._suspect(Member(member.claim, claim.incarnation, Status.SUSPECT, self.now), claim.source)
            self.tell(claim)

    def sample_suspects(self, count: int) -> list[Member]:
        """Up to ``count`` random suspects."""
        nodes = sorted(self._suspicions)
        if len(nodes) > count:
            nodes = [nodes[self.chance.below(len(nodes))] for _ in range(count)]
        return [self.table.members[node] for node in nodes]

    def on_last_call(self, suspect: Member) -> None:
        """Ask this one a last time; higher floors do."""

    def on_stalled(self, seconds: float) -> None:
        """This node stood still for so long: the suspects were not heard in that time."""
        for suspicion in self._suspicions.values():
            suspicion.shift(seconds)

    def _take_over(self, member: Member) -> None:
        """A table from before may hold suspects, who wait anew, and dead, who wait on."""
        if member.status is Status.SUSPECT:
            self._suspect(member, self.node)
        else:
            self.timers.at(self._kept_until(member), self._forget, member.node)

    def _suspect(self, member: Member, source: NodeId) -> None:
        suspicion = Suspicion.begin(self.settings, self.table.here_count, self.now, source)
        self._suspicions[member.node] = suspicion
        self.believe(member)
        self._wait_for_refutation(member.node)

    def hear_sign_of_life(self, member: Member) -> None:
        """A suspect answered its last call, though not with its own word."""
        suspicion = self._suspicions.get(member.node)
        if suspicion is not None and suspicion.last_call_ends_seconds is not None:
            suspicion.begin_again(self.now)
            self._wait_for_refutation(member.node)
            self.on_unrefuted(member)

    def on_unrefuted(self, member: Member) -> None:
        """It lives and is suspect still; higher floors fetch its word."""

    def _hear_end(self, claim: Dead | Left, status: Status) -> None:
        if self._refuted(claim):
            return
        member = self.table.get(claim.node)
        if member is None or not outranks(claim.incarnation, status, member):
            return
        ended = Member(member.claim, claim.incarnation, status, self.now)
        self.believe(ended)
        self.tell(claim)
        self.timers.at(self._kept_until(ended), self._forget, claim.node)
        self.release(claim.node)

    def _refuted(self, claim: Suspect | Dead | Left) -> bool:
        """Whether it was about this node. To be doubted is a sign of bad health (Lifeguard §IV-A)."""
        if claim.node != self.node:
            return False
        if claim.incarnation >= self.me.incarnation and not self.leaving:
            self.health.worse()
            self.refute(claim.incarnation)
        return True

    def _wait_for_refutation(self, node: NodeId) -> None:
        last_call_at = self._suspicions[node].deadline_seconds - self.settings.probe_seconds
        self.timers.at(max(self.now, last_call_at), self._last_call, node)

    def _last_call(self, node: NodeId) -> None:
        suspicion = self._suspicions.get(node)
        if suspicion is None or suspicion.last_call_ends_seconds is not None:
            return
        if suspicion.deadline_seconds - self.settings.probe_seconds > self.now:  # begun anew meanwhile
            self._wait_for_refutation(node)
            return
        answer_until = self.now + self.health.factor * self.settings.probe_seconds
        suspicion.last_call_ends_seconds = max(suspicion.deadline_seconds, answer_until)
        self.on_last_call(self.table.members[node])
        self.timers.at(suspicion.last_call_ends_seconds, self._give_up, node)

    def _give_up(self, node: NodeId) -> None:
        suspicion = self._suspicions.get(node)
        if suspicion is None or suspicion.last_call_ends_seconds is None:
            return
        if suspicion.last_call_ends_seconds > self.now:  # this node stood still
            self.timers.at(suspicion.last_call_ends_seconds, self._give_up, node)
            return
        self.hear(Dead(node, self.table.members[node].incarnation, self.node))

    def _kept_until(self, member: Member) -> float:
        dead = member.status is Status.DEAD
        kept = self.settings.dead_kept_seconds if dead else self.settings.left_kept_seconds
        return member.since_seconds + kept

    def _forget(self, node: NodeId) -> None:
        member = self.table.get(node)
        if member is None or member.here:
            return
        if self.now >= self._kept_until(member):
            self.table.remove(node)
            self.news.drop(node)
            self.act(MemberForgotten(member))

"""Is it alive? Directly, through others, over a stream; and for others who ask. Pure.

A probe: 1 ping; without an answer in time 2 others ping for us, and a stream is tried; without an answer to
any of it 3 the member is suspect. Others answer with a nack when they get no answer either: a missing nack
tells that the fault is near this node (Lifeguard §IV-A).
"""

from __future__ import annotations

from dataclasses import dataclass

from sllmd.cluster.gossip.core import Start
from sllmd.cluster.gossip.exchanging import Exchanging
from sllmd.cluster.gossip.members import Member
from sllmd.cluster.gossip.messages import (
    Ack,
    Conflict,
    Dead,
    Message,
    Nack,
    Ping,
    PingRequest,
    Status,
    Suspect,
)
from sllmd.core.ids import NodeId

NACK_SHARE = 0.8
"""Of the probe time-out, after which one who pings for another gives up: the nack must still be in time."""


@dataclass(slots=True)
class _Probe:
    target: NodeId
    direct_deadline: float
    deadline: float
    nacks_due: int = 0


@dataclass(slots=True)
class _Relay:
    """A probe made for somebody else."""

    target: NodeId
    origin: str
    origin_seq: int


class Probing(Exchanging):
    """Finds out who is silent."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._probes: dict[int, _Probe] = {}
        self._probed: dict[NodeId, int] = {}
        self._relays: dict[int, _Relay] = {}
        self._pings_of_dead: dict[int, NodeId] = {}
        self.timers.at(self.now + self.chance.fraction() * self.settings.probe_seconds, self._probe_due)
        self.timers.at(
            self.now + self.chance.fraction() * self.settings.dead_ping_seconds, self._dead_ping_due
        )

    def on_ping(self, ping: Ping, address: str) -> None:
        """Answer, unless it is meant for a former owner of this address."""
        if ping.target == self.node:
            self.send(address, Ack(ping.seq, self.node))

    def on_ping_request(self, request: PingRequest, address: str) -> None:
        """Ping somebody for somebody."""
        if len(self._relays) >= self.settings.relays_max:
            return
        seq = self.fresh_seq()
        self._relays[seq] = _Relay(request.target, address, request.seq)
        self.send(request.address, Ping(seq, self.node, request.target))
        self.timers.at(self.now + NACK_SHARE * self.settings.probe_timeout_seconds, self._relay_silent, seq)

    def hear_ack(self, ack: Ack) -> None:
        """An answer: to a probe of ours, to one for somebody else, or from one believed dead or suspect."""
        probe = self._probes.get(ack.seq)
        if probe is not None and probe.target == ack.source:
            self._answered(ack.seq, probe)
        relay = self._relays.get(ack.seq)
        if relay is not None and relay.target == ack.source:
            del self._relays[ack.seq]
            self.send(relay.origin, Ack(relay.origin_seq, ack.source))
        if self._pings_of_dead.get(ack.seq) == ack.source:
            del self._pings_of_dead[ack.seq]
            member = self.table.get(ack.source)
            if member is not None:
                self.exchange_after_silence(member)

    def on_nack(self, nack: Nack) -> None:
        """One who pinged for us is well, and got no answer either."""
        probe = self._probes.get(nack.seq)
        if probe is not None and probe.nacks_due:
            probe.nacks_due -= 1

    def on_last_call(self, suspect: Member) -> None:
        """A probe out of turn; it carries the doubt."""
        self.probe(suspect)

    def on_contested(self, holder: Member) -> None:
        """Ask the holder of the id at once; its answer, or its death, decides."""
        self.probe(holder)

    def on_stalled(self, seconds: float) -> None:
        """Answers may have come meanwhile, and wait to be read."""
        super().on_stalled(seconds)
        for probe in self._probes.values():
            probe.direct_deadline += seconds
            probe.deadline += seconds

    def probe(self, member: Member) -> None:
        """Begin to probe, unless that is being done."""
        if member.node in self._probed:
            return
        seq, factor = self.fresh_seq(), self.health.factor
        probe = _Probe(
            member.node,
            self.now + factor * self.settings.probe_timeout_seconds,
            self.now + factor * self.settings.probe_seconds,
        )
        self._probes[seq], self._probed[member.node] = probe, seq
        self._ping(member, seq)
        self.timers.at(probe.direct_deadline, self._silent, seq)

    def _ping(self, member: Member, seq: int) -> None:
        """One who is doubted hears it with the ping, and can refute with the answer (Lifeguard §IV-C)."""
        ping = Ping(seq, self.node, member.node)
        doubt: Message
        if member.status is Status.SUSPECT:
            doubt = Suspect(member.node, member.incarnation, self.node)
        elif member.status is Status.DEAD:
            doubt = Dead(member.node, member.incarnation, self.node)
        else:
            self.send(member.address, ping)
            return
        self.send(member.address, doubt, ping)

    def _probe_due(self, _: None) -> None:
        self.timers.at(self.now + self.health.factor * self.settings.probe_seconds, self._probe_due)
        if self.leaving:
            return
        member = self.table.next_to_probe()
        if member is not None:
            self.probe(member)

    def _silent(self, seq: int) -> None:
        """No direct answer in time."""
        probe = self._probes.get(seq)
        if probe is None:
            return
        if probe.direct_deadline > self.now:
            self.timers.at(probe.direct_deadline, self._silent, seq)
            return
        member = self.table.get(probe.target)
        if member is None or not member.here:
            self._end(seq, probe)
            return
        peers = self.table.sample(
            self.settings.indirect_probes,
            lambda peer: peer.status is Status.ALIVE and peer.node != probe.target,
        )
        probe.nacks_due = len(peers)
        for peer in peers:
            self.send(peer.address, PingRequest(seq, self.node, member.node, member.address))
        self.ask_ping(member, seq, probe.deadline - self.now)
        self.timers.at(probe.deadline, self._failed_probe, (seq, len(peers)))

    def _failed_probe(self, which: tuple[int, int]) -> None:
        """No answer at all."""
        seq, asked = which
        probe = self._probes.get(seq)
        if probe is None:
            return
        if probe.deadline > self.now:
            self.timers.at(probe.deadline, self._failed_probe, which)
            return
        self._end(seq, probe)
        self.health.worse(probe.nacks_due if asked else 1)
        member = self.table.get(probe.target)
        if member is not None and member.here and not self.leaving:
            self.hear_suspect(Suspect(member.node, member.incarnation, self.node))

    def _answered(self, seq: int, probe: _Probe) -> None:
        self._end(seq, probe)
        self.health.better()
        member = self.table.get(probe.target)
        if member is not None:
            self.hear_sign_of_life(member)
        claim = self.contested.pop(probe.target, None)
        if claim is not None:
            holder = self.table.members[probe.target]
            self.send(claim.address, Conflict(holder.node, holder.address))

    def _end(self, seq: int, probe: _Probe) -> None:
        del self._probes[seq]
        del self._probed[probe.target]

    def _relay_silent(self, seq: int) -> None:
        relay = self._relays.pop(seq, None)
        if relay is not None:
            self.send(relay.origin, Nack(relay.origin_seq, self.node))

    def _dead_ping_due(self, _: None) -> None:
        """Those believed dead may be behind a partition that has healed; suspects, too, and they are not left
        to the turn of probes, which is slow on a node in bad health, as who was cut off is.
        """
        self.timers.at(self.now + self.settings.dead_ping_seconds, self._dead_ping_due)
        self._pings_of_dead.clear()
        if self.leaving:
            return
        count = self.settings.dead_pings
        for member in [*self.table.sample_dead(count), *self.sample_suspects(count)]:
            seq = self.fresh_seq()
            self._pings_of_dead[seq] = member.node
            self._ping(member, seq)

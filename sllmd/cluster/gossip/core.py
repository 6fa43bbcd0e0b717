"""What every part of the machine shares: this node's claim, the table, health, chance, timers. Pure.

The machine is built in floors, each one file and one subject: ``Core`` -> ``Rules`` -> ``Suspecting`` ->
``Exchanging`` -> ``Probing`` -> ``Gossip``. A floor calls only floors below it; what a lower floor lets a
higher one add to (``on_contested``, ``on_stalled``) is extended by overriding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sllmd.cluster.gossip.chance import Chance
from sllmd.cluster.gossip.events import Action, MemberChanged, Send
from sllmd.cluster.gossip.health import Health
from sllmd.cluster.gossip.members import Member, Table
from sllmd.cluster.gossip.messages import (
    PACKET_FRAMING_BYTES,
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
    Alive,
    Claim,
    Message,
    Status,
    packed_bytes,
)
from sllmd.cluster.gossip.news import News, retransmit_limit
from sllmd.cluster.gossip.settings import GossipSettings
from sllmd.cluster.gossip.timers import Timers
from sllmd.core.ids import NodeId


@dataclass(frozen=True, slots=True)
class Start:
    """What a machine begins with. ``seed`` decides all its random choices. ``overhead_bytes`` is what the
    shell adds to a packet. ``known`` is a table from before, which is believed until it proves wrong."""

    node: NodeId
    name: str
    address: str
    meta: bytes
    settings: GossipSettings
    now_seconds: float
    seed: int
    overhead_bytes: int = 0
    protocol_min: int = PROTOCOL_VERSION_MIN
    protocol_max: int = PROTOCOL_VERSION
    known: Mapping[NodeId, Member] = field(default_factory=dict)


class Core:
    """State, and how news gets out."""

    def __init__(self, start: Start) -> None:
        self.node = start.node
        self.settings = start.settings
        self.now = start.now_seconds
        self.born = start.now_seconds
        self.chance = Chance(start.seed)
        self.table = Table(start.node, start.known, self.chance)
        self.health = Health(start.settings.health_max)
        self.news = News(start.settings.news_max)
        self.timers = Timers()
        self.leaving = False
        self._actions: list[Action] = []
        self._seq = self.chance.bits() >> 32
        self._room_bytes = start.settings.packet_bytes_max - start.overhead_bytes - PACKET_FRAMING_BYTES
        self._round_armed = False
        self._last_round = -float("inf")
        self.me = Alive(
            start.node, 0, start.name, start.address, start.protocol_min, start.protocol_max, start.meta
        )
        if start.node in start.known:
            self.me = start.known[start.node].claim
        self.table.put(Member(self.me, self.me.incarnation, Status.ALIVE, self.now))

    def act(self, action: Action) -> None:
        """One more action of the event being handled."""
        self._actions.append(action)

    def flush(self) -> list[Action]:
        """The actions of this event."""
        actions, self._actions = self._actions, []
        return actions

    def fresh_seq(self) -> int:
        """A number that no answer of a former life of this node carries, most likely."""
        self._seq += 1
        return self._seq

    def others_here(self) -> int:
        """How many members there are to talk to."""
        return self.table.here_count - (not self.leaving)

    def believe(self, member: Member) -> None:
        """Put into the table, and tell the shell."""
        before = self.table.put(member)
        self.act(MemberChanged(before, member))

    def send(self, address: str, *messages: Message) -> None:
        """A packet with these messages and as much news as fits beside them."""
        if not len(self.news):
            self.act(Send(address, messages))
            return
        room = self._room_bytes - sum(packed_bytes(message) for message in messages)
        claims = self.news.take(room, self._limit())
        self.act(Send(address, (*messages, *claims)))

    def tell(self, claim: Claim) -> None:
        """Have everybody hear of this. The first ones at once, if the last round is long enough ago."""
        self.news.add(claim)
        if not self._round_armed:
            self._round_armed = True
            self.timers.at(max(self.now, self._last_round + self.settings.gossip_seconds), self._round)

    def _round(self, _: None) -> None:
        """Tell a few random members what is new (SWIM §4.1, memberlist's separate gossip)."""
        self._last_round = self.now
        self._round_armed = False
        for member in self.table.sample(self.settings.gossip_members, self._hears_gossip):
            claims = self.news.take(self._room_bytes, self._limit())
            if not claims:
                break
            self.act(Send(member.address, tuple(claims)))
        if len(self.news) and self.others_here():
            self._round_armed = True
            self.timers.at(self.now + self.settings.gossip_seconds, self._round)
        self.on_round()

    def on_round(self) -> None:
        """A round of news was told; higher floors add to this."""

    def _hears_gossip(self, member: Member) -> bool:
        freshly_dead = self.now - member.since_seconds < self.settings.gossip_to_dead_seconds
        return member.here or (member.status is Status.DEAD and freshly_dead)

    def _limit(self) -> int:
        return retransmit_limit(self.settings.retransmit_multiplier, self.table.here_count)

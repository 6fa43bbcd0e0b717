"""Comparing whole tables: how a node joins, and how whatever gossip missed is still learnt. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sllmd.cluster.gossip.core import Start
from sllmd.cluster.gossip.events import (
    Answer,
    Answered,
    Ask,
    Asked,
    AskFailed,
    Incompatible,
    Join,
    Joined,
    JoinFailed,
)
from sllmd.cluster.gossip.members import Member
from sllmd.cluster.gossip.messages import (
    Ack,
    Conflict,
    Exchange,
    Fact,
    Left,
    Ping,
    Refusal,
    Status,
    StreamMessage,
    Suspect,
)
from sllmd.cluster.gossip.suspecting import Suspecting
from sllmd.core.ids import NodeId

EXCHANGE_TIMEOUT_SECONDS = 10.0
"""Megabytes over a slow link, or a peer that is busy."""
SCALE_FROM_MEMBERS = 32
"""Up to here tables are exchanged at the plain rate; each doubling makes it one step rarer."""


@dataclass(frozen=True, slots=True)
class _Purpose:
    """Why something was asked: to join, to compare tables, or (``seq``) to probe over a stream."""

    address: str
    joining: bool = False
    seq: int | None = None


class Exchanging(Suspecting):
    """Asks and answers over streams."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._asked: dict[int, _Purpose] = {}
        self._healed_at = -math.inf
        self.timers.at(self.now + self.chance.fraction() * self._exchange_pause(), self._exchange_due)

    def on_join(self, event: Join) -> None:
        """Ask whoever answers there for its table."""
        self._exchange(event.address, joining=True)

    def exchange_after_silence(self, member: Member) -> None:
        """One believed dead answers: compare tables, the whole of its side may be back."""
        if self.now - self._healed_at >= self.settings.dead_ping_seconds / 2:
            self._healed_at = self.now
            self._exchange(member.address, joining=False)

    def on_unrefuted(self, member: Member) -> None:
        """Its table begins with its own claim."""
        self.exchange_after_silence(member)

    def ask_ping(self, member: Member, seq: int, timeout_seconds: float) -> None:
        """Probe over a stream: some networks lose datagrams and nothing else."""
        ask_id = self.fresh_seq()
        self._asked[ask_id] = _Purpose(member.address, seq=seq)
        self.act(Ask(ask_id, member.address, Ping(seq, self.node, member.node), timeout_seconds))

    def on_asked(self, event: Asked) -> None:
        """Answer another's question."""
        match event.message:
            case Ping(seq=seq, target=target) if target == self.node:
                self.act(Answer(event.ask_id, Ack(seq, self.node)))
            case Exchange() as exchange:
                self.act(Answer(event.ask_id, self._answer_exchange(exchange)))

    def on_answered(self, event: Answered) -> None:
        """An answer to one of ours, whatever it is worth."""
        purpose = self._asked.pop(event.ask_id, None)
        if purpose is None:
            return
        match event.message:
            case Ack() as ack if purpose.seq == ack.seq:
                self.hear_ack(ack)
            case Exchange() as exchange:
                self._take_answer(exchange, purpose)
            case Conflict() as conflict:
                self._refused(purpose, f"this node's id is alive at {conflict.address}")
                self.hear_conflict(conflict)
            case Refusal(reason=reason):
                self._refused(purpose, reason)

    def on_ask_failed(self, event: AskFailed) -> None:
        """Nobody answers there, now."""
        purpose = self._asked.pop(event.ask_id, None)
        if purpose is not None and purpose.joining:
            self.act(JoinFailed(purpose.address, event.reason, refused=False))

    def hear_ack(self, ack: Ack) -> None:
        """A probe was answered; the floor above knows which."""

    def _exchange(self, address: str, *, joining: bool) -> None:
        ask_id = self.fresh_seq()
        self._asked[ask_id] = _Purpose(address, joining=joining)
        self.act(Ask(ask_id, address, self._table(joining=joining), EXCHANGE_TIMEOUT_SECONDS))

    def _table(self, *, joining: bool) -> Exchange:
        others = (member for node, member in self.table.members.items() if node != self.node)
        return Exchange(self.me, joining, tuple(member.fact() for member in others))

    def _answer_exchange(self, exchange: Exchange) -> StreamMessage:
        claim = exchange.claim
        reason = self.incompatibility(claim)
        if reason is not None:
            self.compatible(claim)  # reports it
            return Refusal(reason)
        if claim.node == self.node and claim.address != self.me.address and exchange.joining:
            return Conflict(self.node, self.me.address)
        answer = self._table(joining=False)
        self._merge(exchange)
        return answer

    def _take_answer(self, exchange: Exchange, purpose: _Purpose) -> None:
        reason = self.incompatibility(exchange.claim)
        if reason is not None:
            self._refused(purpose, reason)
        elif exchange.claim.node == self.node and exchange.claim.address == self.me.address:
            self._failed(purpose, "that is this node itself", refused=False)
        else:
            self._merge(exchange)
            if purpose.joining:
                self.act(Joined(purpose.address))

    def _refused(self, purpose: _Purpose, reason: str) -> None:
        if not purpose.joining:
            self.act(Incompatible(NodeId(""), "", purpose.address, reason))
        self._failed(purpose, reason, refused=True)

    def _failed(self, purpose: _Purpose, reason: str, *, refused: bool) -> None:
        if purpose.joining:
            self.act(JoinFailed(purpose.address, reason, refused=refused))

    def _merge(self, exchange: Exchange) -> None:
        self.hear_alive(exchange.claim)
        if len(exchange.facts) > self.settings.exchange_members_max:
            return
        for fact in exchange.facts:
            member = self.table.get(fact.claim.node)
            if member is None or not _same(fact, member):
                self._learn(fact, exchange.claim.node)

    def _learn(self, fact: Fact, source: NodeId) -> None:
        """Another's belief. One that it believes dead is only suspected here: it may refute that."""
        known = self.table.get(fact.claim.node)
        if known is None and fact.status > Status.SUSPECT:
            return
        self.hear_alive(fact.claim)
        if fact.status is Status.LEFT:
            self.hear(Left(fact.claim.node, fact.incarnation))
        elif fact.status is not Status.ALIVE:
            self.hear_suspect(Suspect(fact.claim.node, fact.incarnation, source))

    def _exchange_due(self, _: None) -> None:
        self.timers.at(self.now + self._exchange_pause(), self._exchange_due)
        if self.leaving:
            return
        for member in self.table.sample(1, lambda member: member.status is Status.ALIVE):
            self._exchange(member.address, joining=False)

    def _exchange_pause(self) -> float:
        doublings = math.ceil(math.log2(max(1, self.table.here_count) / SCALE_FROM_MEMBERS))
        return self.settings.exchange_seconds * (1 + max(0, doublings))


def _same(fact: Fact, member: Member) -> bool:
    return (
        fact.incarnation == member.incarnation
        and fact.status is member.status
        and (fact.claim is member.claim or fact.claim == member.claim)
    )

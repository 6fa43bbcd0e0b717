"""The machine's one door: ``Gossip.handle(event) -> list[Action]``. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sllmd.cluster.gossip.core import Start
from sllmd.cluster.gossip.events import (
    Action,
    Answered,
    Asked,
    AskFailed,
    ChangeMeta,
    Event,
    Gone,
    Join,
    Leave,
    Receive,
    Tick,
)
from sllmd.cluster.gossip.members import Member
from sllmd.cluster.gossip.messages import Ack, Claim, Conflict, Left, Nack, Ping, PingRequest, Status
from sllmd.cluster.gossip.probing import Probing
from sllmd.core.ids import NodeId


class Gossip(Probing):
    """One member. One task owns it; it owns no task, no clock, no socket."""

    def __init__(self, start: Start) -> None:
        super().__init__(start)
        self._gone = False
        self._meta = start.meta
        self._events: dict[type, Callable[[Any], None]] = {
            Tick: self._on_tick,
            Receive: self._on_receive,
            Asked: self.on_asked,
            Answered: self.on_answered,
            AskFailed: self.on_ask_failed,
            Join: self.on_join,
            Leave: self._on_leave,
            ChangeMeta: self._on_change_meta,
        }

    def handle(self, event: Event) -> list[Action]:
        """Take one event; the actions that it leads to, to be carried out in order."""
        if self._gone:
            return []
        self.now = max(self.now, event.now_seconds)
        self._events[type(event)](event)
        return self.flush()

    def deadline_seconds(self) -> float:
        """When the next ``Tick`` is due."""
        return math.inf if self._gone else self.timers.next_seconds()

    def suspected_by(self, node: NodeId) -> tuple[NodeId, ...]:
        """The members known to suspect this one, the first one first."""
        suspicion = self.suspicions.get(node)
        return tuple(suspicion.sources) if suspicion is not None else ()

    def on_round(self) -> None:
        """A goodbye is over when nobody needs to be told any more."""
        if self.leaving and not self.news.has(self.node):
            self._go(None)

    def _on_tick(self, _: Tick) -> None:
        late_seconds = self.now - self.timers.next_seconds()
        if late_seconds > self.settings.lag_seconds_max:
            self.health.worse()
        if late_seconds > self.settings.late_seconds_max:
            self.on_stalled(late_seconds)
        self.timers.run(self.now)

    def _on_receive(self, event: Receive) -> None:
        """Claims first: an answer means more when the refutation that came with it is known."""
        for message in event.messages:
            if isinstance(message, Claim):
                self.hear(message)
        for message in event.messages:
            match message:
                case Ping():
                    self.on_ping(message, event.address)
                case PingRequest():
                    self.on_ping_request(message, event.address)
                case Ack():
                    self.hear_ack(message)
                case Nack():
                    self.on_nack(message)
                case Conflict():
                    self.hear_conflict(message)

    def _on_leave(self, _: Leave) -> None:
        if self.leaving:
            return
        self.leaving = True
        self.believe(Member(self.me, self.me.incarnation, Status.LEFT, self.now))
        if not self.others_here():
            self._go(None)
            return
        self.tell(Left(self.node, self.me.incarnation))
        self.timers.at(self.now + self.settings.leave_seconds_max, self._go)

    def _go(self, _: None) -> None:
        if not self._gone:
            self._gone = True
            self.act(Gone())

    def _on_change_meta(self, event: ChangeMeta) -> None:
        if event.meta != self.me.meta and not self.leaving:
            self.announce(replace(self.me, meta=event.meta, incarnation=self.me.incarnation + 1))

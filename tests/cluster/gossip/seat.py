"""One machine on a table: the test is everybody else, and the clock."""

from __future__ import annotations

from typing import Any, TypeVar

from sllmd.cluster.gossip import Gossip, GossipSettings, Start
from sllmd.cluster.gossip.events import Action, Answer, Asked, Event, MemberChanged, Receive, Send, Tick
from sllmd.cluster.gossip.members import Member
from sllmd.cluster.gossip.messages import Ack, Alive, Message, Ping, Status, StreamMessage
from sllmd.core.ids import NodeId

A = TypeVar("A")
M = TypeVar("M")
ME = NodeId("me")


def alive(node: str, incarnation: int = 0, **fields: Any) -> Alive:
    given = {
        "name": f"name-{node}",
        "address": f"{node}:1",
        "protocol_min": 1,
        "protocol_max": 1,
        "meta": b"",
    }
    return Alive(NodeId(node), incarnation, **{**given, **fields})


class Seat:
    """The machine of the node ``me``, with other members a, b, c ... known to be alive."""

    def __init__(
        self, others: str = "", *, known: dict[NodeId, Member] | None = None, **options: Any
    ) -> None:
        self.now = 0.0
        self.answering: set[str] = set(options.pop("answering", ""))
        """Who answers pings at once; the others are silent unless the test speaks for them."""
        settings = GossipSettings.model_validate(options.pop("settings", {}))
        table = {node: Member(alive(node), 0, Status.ALIVE, 0.0) for node in map(NodeId, others)}
        start = Start(
            ME, "name-me", "me:1", b"", settings, 0.0, options.pop("seed", 7), known=known or table, **options
        )
        self.machine = Gossip(start)
        self.actions: list[Action] = []

    def handle(self, event: Event) -> list[Action]:
        actions = self.machine.handle(event)
        self.actions += actions
        for address, ping in sent(actions, Ping):
            if ping.target in self.answering:
                self.hear(Ack(ping.seq, ping.target), address=address)
        return actions

    def hear(self, *messages: Message, address: str = "a:1") -> list[Action]:
        return self.handle(Receive(self.now, address, messages))

    def ask(self, message: StreamMessage) -> StreamMessage | None:
        answers = [
            action for action in self.handle(Asked(self.now, 1, message)) if isinstance(action, Answer)
        ]
        return answers[0].message if answers else None

    def run(self, until: float) -> list[Action]:
        """Let time pass, with every timer in time."""
        before = len(self.actions)
        while self.machine.deadline_seconds() <= until:
            self.now = max(self.now, self.machine.deadline_seconds())
            self.handle(Tick(self.now))
        self.now = until
        return self.actions[before:]

    def run_until_sent(self, kind: type[M], limit: float = 60.0) -> tuple[str, M]:
        """Let time pass until a message of this kind is sent; to whom, and the message."""
        while self.now < limit:
            self.now = max(self.now, self.machine.deadline_seconds())
            found = sent(self.handle(Tick(self.now)), kind)
            if found:
                return found[0]
        raise AssertionError(f"no {kind.__name__} by then")

    def status(self, node: str) -> Status | None:
        member = self.machine.table.get(NodeId(node))
        return member.status if member is not None else None

    def belief(self, node: str) -> tuple[Status, int] | None:
        member = self.machine.table.get(NodeId(node))
        return (member.status, member.incarnation) if member is not None else None

    @property
    def news(self) -> list[Message]:
        """What is waiting to be told."""
        return list(self.machine.news.take(10**6, 10**6))


def sent(actions: list[Action], kind: type[M]) -> list[tuple[str, M]]:
    return [
        (action.address, message)
        for action in actions
        if isinstance(action, Send)
        for message in action.messages
        if isinstance(message, kind)
    ]


def only(actions: list[Action], kind: type[A]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def changes(actions: list[Action]) -> list[tuple[NodeId, Status]]:
    return [(action.after.node, action.after.status) for action in only(actions, MemberChanged)]

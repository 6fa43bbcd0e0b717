"""A router that carries one generation, and nodes that run it: seeded, without clocks, sockets or tasks.

A node makes one token per step of its own pace and sends it with a delay of its own, so that tokens of a
source that was left go on arriving. What the router does at each event is what ``roles.carriage`` and
``roles.mover`` do: the machine decides, the ledger judges.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from sllmd.core.ids import GenerationId
from sllmd.engine.protocol import FinishReason, GenerationState, PrefilledEvent, Sampling, TokenEvent
from sllmd.migration.failover import Patience
from sllmd.migration.ledger import Ledger, Verdict
from sllmd.migration.mover import (
    Action,
    Commit,
    Ended,
    Event,
    FailOver,
    Held,
    Late,
    Move,
    Phase,
    Release,
    Resumed,
    SourceLost,
    TargetFailed,
    Warm,
    Warmed,
)
from sllmd.migration.settings import MigrationSettings

When = Literal["before", "holding", "warming", "committed", "later"]
What = Literal[
    "nothing", "source dies", "target dies", "both die", "target refuses", "target hangs", "source hangs",
    "generation ends", "client leaves", "partition heals", "source doubles", "source skips",
]  # fmt: skip
WHENS: tuple[When, ...] = ("before", "holding", "warming", "committed", "later")
WHATS: tuple[What, ...] = (
    "nothing", "source dies", "target dies", "both die", "target refuses", "target hangs", "source hangs",
    "generation ends", "client leaves", "partition heals", "source doubles", "source skips",
)  # fmt: skip

ID = GenerationId("g")
NODES = 4
MOVE_SECONDS = 20.0


def token_of(prompt: tuple[int, ...], index: int) -> int:
    """What any replica draws at ``index``: keyed sampling."""
    return (sum(prompt) * 31 + index * 2654435761) % 50_000


@dataclass
class Node:
    """A replica: what it runs, and how fast."""

    name: int
    step_seconds: float
    prefill_seconds: float
    load_seconds: float
    delay_seconds: float
    alive: bool = True
    refuses: bool = False
    hangs: bool = False
    unheard: bool = False
    """It lives, and the router believes that it does not."""
    slots: set[str] = field(default_factory=set)
    """Leases and rows that it holds."""


@dataclass
class Source:
    """One hop: a row on a node."""

    hop: int
    node: Node
    output_ids: list[int]
    slot: str
    doubles: bool = False
    skips: bool = False


class World:
    """See the module."""

    def __init__(self, seed: int, when: When, what: What) -> None:
        self.random = rng = random.Random(f"{seed} {when} {what}")
        self.when, self.what = when, what
        self.now = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self.nodes = [
            Node(
                name,
                step_seconds=rng.uniform(0.01, 0.1),
                prefill_seconds=rng.choice((0.0, 0.0005, 0.005)),
                load_seconds=rng.choice((0.0, 0.3, 3.0)),
                delay_seconds=rng.uniform(0.0, 0.3),
            )
            for name in range(NODES)
        ]
        self.tokens_max = rng.choice((3, 40, 150))
        sampling = Sampling(seed=1, max_tokens=self.tokens_max)
        prompt = [rng.randrange(1000) for _ in range(rng.choice((1, 30, 300)))]
        self.ledger = Ledger(GenerationState(ID, prompt, sampling))
        self.settings = MigrationSettings(move_timeout=MOVE_SECONDS, rounds_max=rng.choice((1, 2, 5)))
        self.patience = Patience(self.settings)
        self.client: list[int] = []
        self.source: Source | None = None
        self.sought: Node | None = None
        """Where a failover just asks."""
        self.move: Move | None = None
        self.target: Node | None = None
        self.lease = ""
        self.failed: str | None = None
        self.left = False
        self.wrong: list[str] = []
        self.struck = False

    # -- time ----------------------------------------------------------------------------------

    def at(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._numbers), do))

    def run(self) -> list[str]:
        """Play it to its end."""
        self._start(self.nodes[0], hop=0)
        self.at(self.random.uniform(0.05, 1.0), self._begin_move)
        if self.when == "before":
            self.at(0.03, self._strike)
        steps = 0
        while self._queue and steps < 20_000:
            self.now, _, do = heapq.heappop(self._queue)
            do()
            steps += 1
        self._judge_the_end(steps)
        return self.wrong

    @property
    def over(self) -> bool:
        return self.left or self.failed is not None or self.ledger.over

    # -- sources -------------------------------------------------------------------------------

    def _start(self, node: Node, hop: int) -> None:
        """A row begins there, from the ledger."""
        state = self.ledger.state()
        slot = f"row {hop}"
        node.slots.add(slot)
        self.source = source = Source(hop, node, state.output_ids, slot)
        known = len(state.prompt_ids) + len(state.output_ids)
        self.at(node.prefill_seconds * known, lambda: self._prefilled(source))

    def _prefilled(self, source: Source) -> None:
        self._send(source, PrefilledEvent(ID, 1, 0, 0.0))
        self._step(source)

    def _step(self, source: Source) -> None:
        node = source.node
        if not node.alive or node.hangs or source.slot not in node.slots:
            return
        index = len(source.output_ids)
        if index >= self.tokens_max:
            return
        ends = index == self.tokens_max - 1
        if source.skips and not ends:
            source.skips = False
            source.output_ids.append(token_of(self.ledger.prompt_ids, index))
            index, ends = index + 1, index + 1 == self.tokens_max - 1
        token = token_of(self.ledger.prompt_ids, index)
        source.output_ids.append(token)
        event = TokenEvent(ID, index, token, FinishReason.LENGTH if ends else None)
        for _ in range(2 if source.doubles else 1):
            self._send(source, event)
        if ends:
            node.slots.discard(source.slot)
            return
        self.at(node.step_seconds, lambda: self._step(source))

    def _send(self, source: Source, event: TokenEvent | PrefilledEvent) -> None:
        if not source.node.unheard or self.what == "partition heals":
            late = 2.0 if source.node.unheard else 0.0
            self.at(source.node.delay_seconds + late, lambda: self._take(source, event))

    def _take(self, source: Source, event: TokenEvent | PrefilledEvent) -> None:
        """The router hears of it."""
        if self.left or self.failed is not None:
            return
        verdict = self.ledger.take(source.hop, event)
        if verdict is Verdict.ACCEPTED and source is not self.source:
            self.wrong.append("a source that is not the present one was heard")
        if verdict is Verdict.ACCEPTED and isinstance(event, TokenEvent):
            self.client.append(event.token_id)
        if verdict is Verdict.GAP:
            self._lose(source, "it left out a token")
        if self.ledger.over:
            self._end("the generation is over")

    def _cancel(self, source: Source) -> None:
        """Without waiting: the node hears of it after a while."""
        self.at(source.node.delay_seconds, lambda: source.node.slots.discard(source.slot))

    def _lose(self, source: Source, reason: str) -> None:
        if source is not self.source or self.over:
            return
        self._cancel(source)
        self._tell(SourceLost(reason))
        if self.source is not source:  # the target took over
            return
        self.source = None
        if not self.patience.may_resume(self.ledger.tokens):
            self._fail("too many tries")
            return
        self._seek([node for node in self.nodes if node is not source.node])

    def _seek(self, left: list[Node]) -> None:
        """A failover asks one node after the other."""
        if not left:
            self._fail("no place takes it")
            return
        node = left[0]
        hop = self.ledger.switch()
        self.sought = node

        def answered() -> None:
            if hop != self.ledger.hop or self.over:
                return
            if not node.alive or node.refuses or node.unheard:
                self._seek(left[1:])
                return
            self.sought = None
            self._start(node, hop)
            self._tell(Resumed())

        self.at(node.load_seconds + node.delay_seconds, answered)

    # -- the move ------------------------------------------------------------------------------

    def _begin_move(self) -> None:
        if self.over or self.source is None:
            return
        self.target = self.nodes[-1]
        self.move = Move(
            self.settings, tokens=self.ledger.tokens, tokens_max=self.tokens_max, now_seconds=self.now
        )
        self.at(MOVE_SECONDS, lambda: self._tell(Late()))
        if self.when == "holding":
            self._strike()
        target = self.target

        def held() -> None:
            if not self._is_holding(target):
                return
            if not target.alive or target.refuses:
                self._tell(TargetFailed("it refuses"))
            elif not target.hangs:
                self.lease = "lease"
                target.slots.add(self.lease)
                self._tell(Held(self.ledger.tokens, self.now))

        self.at(target.load_seconds + target.delay_seconds, held)

    def _is_holding(self, target: Node) -> bool:
        return self.move is not None and self.target is target and self.move.phase is Phase.HOLDING

    def _tell(self, event: Event) -> None:
        if self.move is None:
            return
        for action in self.move.handle(event):
            self._carry_out(action)

    def _carry_out(self, action: Action) -> None:
        target = self.target
        assert target is not None
        match action:
            case Warm():
                self._warm(target)
            case Commit():
                before = self.source
                hop = self.ledger.switch()
                target.slots.discard(self.lease)
                self._start(target, hop)
                if before is not None:
                    self._cancel(before)
                if not target.alive:
                    self._notice_death(target)
                if self.when == "committed":
                    self._strike()
                elif self.when == "later":
                    self.at(self.random.uniform(0.0, 1.0), self._strike)
            case Release():
                lease = self.lease
                self.at(target.delay_seconds, lambda: target.slots.discard(lease))
            case FailOver():
                pass  # whoever told of the loss is looking already

    def _warm(self, target: Node) -> None:
        known = self.ledger.tokens + len(self.ledger.prompt_ids)
        if self.when == "warming":
            self._strike()

        def warmed() -> None:
            if self.move is None or self.over:
                return
            if not target.alive or target.unheard:
                self._tell(TargetFailed("it is gone"))
            elif not target.hangs:
                self._tell(Warmed(self.ledger.tokens, self.now))

        self.at(target.prefill_seconds * known + 2 * target.delay_seconds, warmed)

    # -- what goes wrong -----------------------------------------------------------------------

    def _strike(self) -> None:  # noqa: C901 - a table of cases
        if self.struck or self.over:
            return
        self.struck = True
        source, target = self.source, self.target or self.nodes[-1]
        match self.what:
            case "source dies" if source is not None:
                self._kill(source.node)
            case "target dies":
                self._kill(target)
            case "both die":
                self._kill(target)
                if source is not None:
                    self._kill(source.node)
            case "target refuses":
                target.refuses = True
            case "target hangs":
                target.hangs = True
                self.at(1.0, lambda: self._notice_death(target))
            case "source hangs" if source is not None:
                source.node.hangs = True
                self.at(1.0, lambda: self._lose(source, "its tokens stalled"))
            case "generation ends" if source is not None:
                self.tokens_max = min(self.tokens_max, len(source.output_ids) + 1)
            case "client leaves":
                self.left = True
                self._end("the client left")
            case "partition heals" if source is not None:
                source.node.unheard = True
                self.at(0.5, lambda: self._lose(source, "gossip believes it dead"))
            case "source doubles" if source is not None:
                source.doubles = True
            case "source skips" if source is not None:
                source.skips = True

    def _kill(self, node: Node) -> None:
        node.alive = False
        node.slots.clear()
        self.at(self.random.uniform(0.0, 0.2), lambda: self._notice_death(node))

    def _notice_death(self, node: Node) -> None:
        """Connections to it break."""
        if self.source is not None and self.source.node is node:
            self._lose(self.source, "the connection broke")
        elif self.target is node and self.move is not None:
            self._tell(TargetFailed("the connection broke"))

    def _fail(self, reason: str) -> None:
        self.failed = reason
        self._end(reason)

    def _end(self, reason: str) -> None:
        self._tell(Ended(reason))
        if self.source is not None:
            self._cancel(self.source)

    # -- what must hold ------------------------------------------------------------------------

    def _judge_the_end(self, steps: int) -> None:
        prompt = self.ledger.prompt_ids
        expected = [token_of(prompt, index) for index in range(len(self.client))]
        if self.client != expected:
            self.wrong.append("tokens lost, doubled or out of order")
        if self.client != list(self.ledger.output_ids()):
            self.wrong.append("the client has other tokens than the ledger")
        if not self.left and self.failed is None and len(self.client) < self.tokens_max:
            self.wrong.append(f"it never ended: {len(self.client)} of {self.tokens_max} tokens")
        if self.failed is not None:
            self.wrong.append(f"it broke: {self.failed}")
        if self.move is not None and self.move.phase not in (Phase.COMMITTED, Phase.OVER):
            self.wrong.append(f"the move is {self.move.phase.value} for ever")
        wrong_slots = {node.name: sorted(node.slots) for node in self.nodes if node.slots and node.alive}
        if wrong_slots:
            self.wrong.append(f"slots leaked: {wrong_slots}")
        if steps >= 20_000:
            self.wrong.append("it goes round in circles")

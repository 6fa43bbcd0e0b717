"""A generation's change of place, planned or not, as it is told of afterwards."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Literal

from sllmd.core.ids import NodeId
from sllmd.roles.status import MoveStatus

Kind = Literal["move", "failover"]
Result = Literal["running", "done", "failed", "called_off"]

NODE_UNKNOWN = NodeId("")


@dataclass(slots=True, eq=False)
class Passage:
    """See ``MoveStatus``, which is what becomes of it."""

    kind: Kind
    reason: str
    source: NodeId
    target: NodeId = NODE_UNKNOWN
    result: Result = "running"
    outcome: str | None = None
    rounds: int = 0
    tokens: int = 0
    pause_ms: float | None = None
    began_seconds: float = field(default_factory=time.monotonic)
    ended_seconds: float = 0.0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, result: Result, outcome: str | None = None) -> None:
        """It is over."""
        self.result, self.outcome = result, outcome
        self.ended_seconds = time.monotonic()
        self.over.set()

    @property
    def seconds(self) -> float:
        """How long it took, or has taken so far."""
        return (self.ended_seconds or time.monotonic()) - self.began_seconds

    def status(self) -> MoveStatus:
        """For people and programs."""
        return MoveStatus(
            kind=self.kind,
            reason=self.reason,
            source=self.source,
            target=self.target,
            result=self.result,
            outcome=self.outcome,
            rounds=self.rounds,
            tokens=self.tokens,
            pause_ms=self.pause_ms,
            seconds=self.seconds,
        )

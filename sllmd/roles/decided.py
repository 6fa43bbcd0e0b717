"""What a router asks the leader, and what it hears: where a model starts soonest, and why there. Pure.

The answer travels on to ``sllmd explain`` and ``sllmd plan``: it holds every way that was compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sllmd.cluster.codec import Codec
from sllmd.core.errors import ProtocolError
from sllmd.core.ids import Digest, ModelName, NodeId, RequestId
from sllmd.scheduler.decisions import Candidate, Placement, Refuse, Wait, Way

CANDIDATES_MAX = 64
"""Ways that travel with a decision, the best first."""
_LOADS = frozenset({Way.LOAD, Way.CLEAR})


@dataclass(frozen=True, slots=True)
class Question:
    """A generation needs a replica; ``avoid``: nodes where it could not run."""

    request_id: RequestId
    model: ModelName
    digest: Digest
    avoid: tuple[NodeId, ...] = ()
    key: str = ""
    """Whose it is: who waits at the leader takes turns by key."""


@dataclass(frozen=True, slots=True)
class WayFact:
    """One way that was compared. Infinite where it is not known or not possible."""

    way: str
    node: NodeId
    source: str
    queue_seconds: float
    load_seconds: float
    free_seconds: float
    total_seconds: float
    why: str


@dataclass(frozen=True, slots=True)
class Decided:
    """What the leader decided."""

    model: ModelName
    node: NodeId
    """Empty: nowhere, for ``reason``."""
    reason: str
    total_seconds: float
    """Estimated from the decision until the model can serve."""
    decide_seconds: float
    """What deciding, agreeing and ordering took."""
    leader: NodeId
    epoch: int
    ways: tuple[WayFact, ...] = ()
    refusals: tuple[str, ...] = ()
    """Of nodes that were ordered before, and did not take it."""

    @property
    def starts(self) -> WayFact | None:
        """The load that was ordered for whoever asked, if one was."""
        return self.ways[0] if self.node and self.ways and self.ways[0].way in _LOADS else None


CODEC = Codec({1: Question, 2: Decided})


def decided(
    placement: Placement,
    *,
    decide_seconds: float,
    leader: NodeId,
    epoch: int,
    refusals: tuple[str, ...] = (),
) -> Decided:
    """A placement as it travels."""
    best = placement.candidates[0] if placement.candidates else None
    decision = placement.decision
    nowhere = isinstance(decision, Refuse) or best is None or best.score == float("inf")
    if isinstance(decision, Refuse):
        reason = decision.missing
    else:
        reason = decision.reason if isinstance(decision, Wait) else ""
    return Decided(
        placement.model,
        NodeId("") if nowhere or best is None else best.node,
        reason,
        float("inf") if nowhere or best is None else best.startup_seconds,
        decide_seconds,
        leader,
        epoch,
        tuple(map(_way, placement.candidates[:CANDIDATES_MAX])),
        refusals,
    )


def _way(candidate: Candidate) -> WayFact:
    return WayFact(
        str(candidate.way),
        candidate.node,
        str(candidate.source),
        candidate.queue_seconds,
        candidate.load_seconds,
        candidate.free_seconds,
        candidate.startup_seconds,
        candidate.why,
    )


def unpack_question(body: Any) -> Question:
    """Raises ProtocolError."""
    question = CODEC.unpack(body) if isinstance(body, bytes) else None
    if not isinstance(question, Question):
        raise ProtocolError("a question that cannot be understood")
    return question


def unpack_decided(body: Any) -> Decided:
    """Raises ProtocolError."""
    answer = CODEC.unpack(body) if isinstance(body, bytes) else None
    if not isinstance(answer, Decided):
        raise ProtocolError("a decision that cannot be understood")
    return answer

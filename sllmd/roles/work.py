"""What a place is asked to run, and what it tells of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from sllmd.core.ids import Digest, ModelName, NodeId, RequestId
from sllmd.engine.protocol import EngineEvent, GenerationState
from sllmd.roles.decided import Decided


@dataclass(frozen=True, slots=True)
class Work:
    """A generation to run, and the model to run it on."""

    request_id: RequestId
    model: ModelName
    digest: Digest
    state: GenerationState
    keep_alive_seconds: float | None = None
    key: str = ""
    """Id of the API key that it came with: keys take turns. Empty: none was needed."""


@dataclass(frozen=True, slots=True)
class Granted:
    """A replica was found or started: what its node tells before the first event."""

    node: NodeId
    """Empty: this node, where no cluster is."""
    cold: bool
    tier: str
    """Where the checkpoint lay when the work came: ``remote``, ``peer``, ``ssd``, ``dram``, ``device``."""
    load_ms: float = 0.0
    estimate_ms: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    """Parts of ``load_ms``, by name."""
    decision: Decided | None = None
    """Why it runs there, where the leader was asked; known to the router alone, so it does not travel."""


Happening = Granted | EngineEvent

"""Requests that a leader has sent to replicas, as long as no report tells of them.

Owns: who was sent where a moment ago, and how many wait for the start that is theirs. A decision counts them
as before itself in the model's line; otherwise a burst would all be sent to the one row that is free.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from sllmd.core.ids import ModelName, NodeId

SENT_SECONDS = 0.5
"""How long a request that was sent to a replica counts as being there, before its node has said so."""
SEEN_SECONDS = 0.05
"""After which a request that was sent to a node is in the node's next report."""


class Claims:
    """See the module."""

    def __init__(self) -> None:
        self._sent: dict[ModelName, list[tuple[float, NodeId]]] = defaultdict(list)
        self._joined: Counter[ModelName] = Counter()

    def ahead(self, model: ModelName, now: float) -> int:
        """How many are before whoever asks now."""
        recent = [each for each in self._sent[model] if now - each[0] < SENT_SECONDS]
        self._sent[model] = recent
        return len(recent) + self._joined[model]

    @contextmanager
    def joining(self, model: ModelName) -> Iterator[None]:
        """Somebody waits for a node to take a start."""
        self._joined[model] += 1
        try:
            yield
        finally:
            self._joined[model] -= 1

    def sent(self, model: ModelName, node: NodeId, now: float) -> None:
        """A request was sent there."""
        self._sent[model].append((now, node))

    def seen(self, node: NodeId, now: float) -> None:
        """A report of ``node``: what was sent there a while ago is in it."""
        before = now - SEEN_SECONDS
        for model, sent in list(self._sent.items()):
            self._sent[model] = [each for each in sent if each[1] != node or each[0] > before]
            if not self._sent[model]:
                del self._sent[model]

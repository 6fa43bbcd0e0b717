"""Which places a generation is offered to, on a node of a cluster: the table, and what was seen since.

Nothing here waits for anybody: the choice is ``choosing.choose`` over the last table and this node's own
inventory. A replica of this node that is ready is taken without looking further.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from sllmd.cluster.catalogue.state import Catalogue
from sllmd.core.errors import NotHere, PeerError, RecordNotFound, SllmdError
from sllmd.core.ids import Digest, ModelName, NodeId
from sllmd.roles.admission import ReplicaState
from sllmd.roles.agent import Agent
from sllmd.roles.choosing import Candidate, Wanted, choose
from sllmd.roles.inventory import Inventory
from sllmd.roles.place import Here, Place
from sllmd.roles.relay import Relays
from sllmd.roles.reporting import Reporter
from sllmd.roles.settings import ModelSettings, RoutingSettings
from sllmd.roles.work import Work

_READY_RULES = frozenset({1, 2, 5})
"""Rules of ``choosing`` that start nothing."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the cluster tells at this moment."""

    alive: Callable[[], Collection[NodeId]]
    """Nodes that gossip believes well, this one among them."""
    has_leader: Callable[[], bool]
    catalogue: Callable[[], Catalogue]


class Placing:
    """See ``dispatch.Places``."""

    def __init__(
        self,
        here: Here,
        agent: Agent,
        take: Callable[[], Inventory],
        relays: Relays,
        reporter: Reporter,
        surroundings: Surroundings,
        settings: RoutingSettings,
    ) -> None:
        self._here = here
        self._agent = agent
        self._take = take
        self._relays = relays
        self._reporter = reporter
        self._surroundings = surroundings
        self._settings = settings
        self._avoided: dict[NodeId, float] = {}
        """Nodes that could not be reached, and until when they are asked last."""

    def choose(self, work: Work) -> Iterator[Place]:
        """The places to ask, the best first."""
        asked: set[NodeId] = set()
        if self._is_ready(work.model, work.digest):
            asked.add(self._here.node)
            yield self._here
        for candidate in self.candidates(work.model, work.digest):
            if len(asked) >= self._settings.candidates_max:
                return
            if candidate.node not in asked:
                asked.add(candidate.node)
                yield self._place(candidate.node)
        if not asked:  # it has a reason to refuse, which the client should hear
            yield self._here

    def candidates(self, model: ModelName, digest: Digest) -> list[Candidate]:
        """Every node that may be asked, the best first."""
        me = self._here.node
        inventories = {**self._reporter.table.inventories, me: self._take()}
        wanted = Wanted(model, digest, self._replicas_max(model))
        found = choose(inventories, wanted, me=me, well={me, *self._surroundings.alive()})
        if not self._surroundings.has_leader():
            found = tuple(each for each in found if each.node == me or each.rule in _READY_RULES)
        now = time.monotonic()
        return sorted(found, key=lambda each: self._avoided.get(each.node, 0.0) > now)

    def at(self, node: NodeId) -> Place:
        """The place that is ``node``, if it is well. Raises RecordNotFound."""
        if node != self._here.node and node not in self._surroundings.alive():
            raise RecordNotFound(f"node `{node}` is not here", hint="`sllmd members` shows who is")
        return self._place(node)

    def failed(self, place: Place, work: Work, error: SllmdError) -> None:
        """It did not run there, because of ``error``."""
        if place.node == self._here.node:
            return
        if isinstance(error, NotHere):
            self._reporter.note_not_here(place.node, work.digest)
        elif isinstance(error, PeerError):
            self._avoided[place.node] = time.monotonic() + self._settings.avoid

    def _is_ready(self, model: ModelName, digest: Digest) -> bool:
        if self._agent.draining:
            return False
        residence = self._agent.find(model, digest)
        return (
            residence is not None
            and residence.state is ReplicaState.SERVING
            and residence.running < residence.options.batch_max
        )

    def _place(self, node: NodeId) -> Place:
        return self._here if node == self._here.node else self._relays.there(node)

    def _replicas_max(self, model: ModelName) -> int:
        deployment = self._surroundings.catalogue().deployments.get(model)
        if deployment is None:
            default: int = ModelSettings.model_fields["replicas_max"].default
            return default
        return deployment.spec.max_replicas

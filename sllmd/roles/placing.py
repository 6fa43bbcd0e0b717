"""Which places a generation is offered to, on a node of a cluster.

1. this node's replica, if it is ready;
2. other nodes' replicas that are ready, as the last table tells;
3. where the leader says that it starts soonest;
4. where this node's own choice would start it (``choosing``), if nobody leads or the leader's choice failed.

Nothing on a ready replica's way waits for anybody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass

import structlog

from sllmd.cluster.catalogue.state import Catalogue
from sllmd.core.errors import (
    CallerError,
    InsufficientCapacity,
    LoadError,
    NotHere,
    PeerError,
    RecordNotFound,
    SllmdError,
)
from sllmd.core.ids import Digest, ModelName, NodeId
from sllmd.roles.admission import ReplicaState
from sllmd.roles.agent import Agent
from sllmd.roles.asked import AskedPlace
from sllmd.roles.choosing import Candidate, Wanted, choose
from sllmd.roles.decided import Decided, Question
from sllmd.roles.inventory import Inventory
from sllmd.roles.place import Here, Place
from sllmd.roles.relay import Relays
from sllmd.roles.reporting import Reporter
from sllmd.roles.settings import ModelSettings, RoutingSettings
from sllmd.roles.work import Work
from sllmd.scheduler.facts import Rules

_READY = 1
RESUME_ASK_SECONDS = 0.5
"""For the leader to place a generation whose client has tokens already: the leader may be what was lost."""
_READY_RULES = frozenset({1, 2, 5})
"""Rules of ``choosing`` that start nothing."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the cluster tells at this moment."""

    alive: Callable[[], Collection[NodeId]]
    """Nodes that gossip believes well, this one among them."""
    has_leader: Callable[[], bool]
    catalogue: Callable[[], Catalogue]
    ask: Callable[[Question], Awaitable[Decided]]
    """Where the leader would have it run. Raises as ``Asking.place``."""


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
            if candidate.rule == _READY and candidate.node not in asked:
                asked.add(candidate.node)
                yield self._place(candidate.node)
        while len(asked) < self._settings.candidates_max:
            place = AskedPlace(lambda work: self._ask(work, asked))
            yield place
            if place.node in asked:
                return
            asked.add(place.node)

    def elsewhere(self, work: Work, node: NodeId) -> Place | None:
        """See ``dispatch.Places``. What runs goes on meanwhile, so nobody is asked."""
        candidates = self.candidates(work.model, work.digest)
        return next((self._place(each.node) for each in candidates if each.node != node), None)

    async def _ask(self, work: Work, asked: Collection[NodeId]) -> tuple[Place, Decided | None]:
        """The next place, and the leader's reasons if it is its choice.

        Raises NotHere when none is left, and why the leader lets it run nowhere.
        """
        decision = None
        question = Question(work.request_id, work.model, work.digest, tuple(asked), work.key)
        try:
            async with asyncio.timeout(RESUME_ASK_SECONDS if work.state.output_ids else None):
                decision = await self._surroundings.ask(question)
        except (CallerError, LoadError):
            raise
        except (SllmdError, TimeoutError) as error:
            _log.info("placed without the leader", model=work.model, reason=str(error))
        well = {self._here.node, *self._surroundings.alive()}
        if decision is not None and decision.node in well and decision.node not in asked:
            return self._place(decision.node), decision
        for candidate in self.candidates(work.model, work.digest):
            if candidate.node not in asked:
                return self._place(candidate.node), None
        if self._here.node in asked:
            raise NotHere(f"no other node can run `{work.model}` now")
        if not self._allows(work.model, self._here.node):
            raise InsufficientCapacity(f"no node is here that the placement rules of `{work.model}` allow")
        return self._here, None  # it has a reason to refuse, which the client should hear

    def candidates(self, model: ModelName, digest: Digest) -> list[Candidate]:
        """Every node that may be asked, the best first."""
        me = self._here.node
        inventories = {**self._reporter.table.inventories, me: self._take()}
        wanted = Wanted(model, digest, self._replicas_max(model))
        well = {me, *self._surroundings.alive()}
        found = choose(inventories, wanted, me=me, well=well, mine=self._relays.under_way(model))
        if not self._surroundings.has_leader():
            found = tuple(each for each in found if each.node == me or each.rule in _READY_RULES)
        found = tuple(each for each in found if each.rule in _READY_RULES or self._allows(model, each.node))
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

    def _allows(self, model: ModelName, node: NodeId) -> bool:
        """Whether the model may start there, as agreed."""
        catalogue = self._surroundings.catalogue()
        deployment, known = catalogue.deployments.get(model), catalogue.nodes.get(node)
        if deployment is None or known is None:
            return True
        return Rules(labels=deployment.spec.placement).allow(known.name, known.labels)

    def _place(self, node: NodeId) -> Place:
        return self._here if node == self._here.node else self._relays.there(node)

    def _replicas_max(self, model: ModelName) -> int:
        deployment = self._surroundings.catalogue().deployments.get(model)
        if deployment is None:
            default: int = ModelSettings.model_fields["replicas_max"].default
            return default
        return deployment.spec.max_replicas

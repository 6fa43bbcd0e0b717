"""The scheduler's view, kept from what nodes report and what is agreed. Pure: time arrives as a value.

Owns: the keeper, and the translation of a node's inventory into the keeper's changes. What a node says now is
compared with what the view holds of it, so a report that was missed costs nothing, and the same inventory
twice changes nothing. A replica that was promised and has not begun is left alone: its order is under way.
A replica's id is its model, node and checkpoint: a node has one at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from sllmd.cluster.catalogue.records import Deployment
from sllmd.cluster.catalogue.state import Catalogue
from sllmd.core.ids import Digest, GenerationId, ModelName, NodeId, ReplicaId
from sllmd.roles.inventory import CheckpointFact, GenerationDetail, Inventory, ReplicaDetail, ReplicaFact
from sllmd.scheduler import reports
from sllmd.scheduler.decisions import Source
from sllmd.scheduler.facts import Model, Rules, Tier
from sllmd.scheduler.keeper import Keeper
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.scheduler.view import NodeView, ReplicaState, ReplicaView

_STATES = {"starting": "loading", "serving": "ready"}
_UNKNOWN_DETAIL = ReplicaDetail(ModelName(""), Digest(""), (), Tier.SSD, 0, 0.0, 0.0, 0.0, ())


def replica_id(model: ModelName, digest: Digest, node: NodeId) -> ReplicaId:
    """The one replica of a checkpoint that a node may have."""
    return ReplicaId(f"{model}@{node}/{digest[:12]}")


def slots(inventory: Inventory) -> tuple[str, ...]:
    """The names of a node's devices, one for each of the view's: a CPU device counts once per replica that it
    takes, a GPU once."""
    return tuple(
        device.name
        for device in inventory.devices
        for _ in range(device.replicas_max if device.memory_bytes is None else 1)
    )


class Picture:
    """See the module."""

    def __init__(self, settings: SchedulerSettings) -> None:
        self.keeper = Keeper(settings)
        self.view = self.keeper.view
        self.inventories: dict[NodeId, Inventory] = {}
        self.digests: dict[ModelName, Digest] = {}
        """What each deployed model stands for, as far as some node has told of it."""
        self._catalogue = Catalogue()
        self._waiting: Counter[ModelName] = Counter()
        """Requests that wait for each model, on all nodes together."""

    # -- what is agreed ------------------------------------------------------------------------

    def agree(self, catalogue: Catalogue, now: float) -> None:
        """The catalogue is this now."""
        before, self._catalogue = self._catalogue, catalogue
        if before.deployments is catalogue.deployments and before.nodes is catalogue.nodes:
            return
        self._name_models()
        for node, inventory in self.inventories.items():
            self._compare(node, inventory, now)

    def _name_models(self) -> None:
        facts, rows = self._facts(), self._rows()
        details = [each.detail for each in self.inventories.values()]
        rows_usual = max((detail.rows for detail in details), default=1)
        cache_bytes = max((detail.cache_bytes for detail in details), default=0)
        wanted: dict[ModelName, Model] = {}
        self.digests = {}
        for name, deployment in self._catalogue.deployments.items():
            fact = facts.get(deployment.spec.digest)
            if fact is not None:
                rows_max = rows.get(deployment.name, rows_usual)
                wanted[ModelName(name)] = _model(deployment, fact, rows_max, cache_bytes)
                self.digests[ModelName(name)] = deployment.spec.digest
        for name in list(self.view.models):
            if name not in wanted:
                self.keeper.drop_model(name)
        for name, model in wanted.items():
            known = self.view.models.get(name)
            if known is None or known.model != model:
                self.keeper.put_model(model)

    def _facts(self) -> dict[Digest, CheckpointFact]:
        every = (fact for each in self.inventories.values() for fact in each.checkpoints)
        return {fact.digest: fact for fact in every}

    def _rows(self) -> dict[ModelName, int]:
        """What replicas of each model run together, as far as there are any."""
        found: dict[ModelName, int] = {}
        for inventory in self.inventories.values():
            for replica in inventory.replicas:
                found[replica.model] = max(replica.rows_max, found.get(replica.model, 0))
        return found

    # -- what nodes say ------------------------------------------------------------------------

    def take(self, node: NodeId, inventory: Inventory, now: float) -> None:
        """A node has this now."""
        before = self.inventories.get(node)
        self.inventories[node] = inventory
        if before is None or _of_models(before) != _of_models(inventory):
            self._name_models()
        self._compare(node, inventory, now)
        self._count_waiting(before, inventory)

    def _count_waiting(self, before: Inventory | None, after: Inventory) -> None:
        """How many wait for each model whose line may have changed."""
        gone, come = _waiting(before or Inventory()), _waiting(after)
        for model in gone | come:
            self._waiting[model] += come[model] - gone[model]
            self.keeper.waiting(model, self._waiting[model])

    def forget(self, node: NodeId) -> None:
        """It is gone."""
        before = self.inventories.pop(node, None)
        self._count_waiting(before, Inventory())
        self.keeper.drop_node(node)

    def _compare(self, node: NodeId, inventory: Inventory, now: float) -> None:
        if not inventory.devices:
            return
        known = self.view.nodes.get(node)
        if known is None or not known.trusted or len(known.devices) != len(slots(inventory)):
            self.keeper.take(self._first(node, inventory), now)
            known = self.view.nodes[node]
        changes = tuple(self._changes(known, inventory))
        fits = self.keeper.apply(reports.Report(node, known.sequence + 1, changes), now)
        self._close_and_reopen(known, inventory)
        for change in changes if fits else ():
            if isinstance(change, reports.GenerationBegan):
                self.keeper.arrived(known.replicas[change.replica].model.name, now)

    def _first(self, node: NodeId, inventory: Inventory) -> reports.Inventory:
        detail = inventory.detail
        whole = all(device.memory_bytes is None for device in inventory.devices)
        sizes = [
            detail.dram_bytes if device.memory_bytes is None else device.memory_bytes
            for device in inventory.devices
            for _ in range(device.replicas_max if device.memory_bytes is None else 1)
        ]
        return reports.Inventory(
            node,
            0,
            detail.name,
            tuple(sizes),
            detail.dram_bytes,
            labels=detail.labels,
            draining=self._is_draining(node, inventory),
            replicas=tuple(self._first_replicas(node, inventory)),
            whole=whole,
            bytes_per_second=detail.rates,
        )

    def _first_replicas(self, node: NodeId, inventory: Inventory) -> Iterator[reports.ReplicaFacts]:
        """Those that serve: nothing can be learned from how they were loaded. The rest follow as changes,
        those that sleep among them."""
        taken: set[int] = set()
        details = _details(inventory)
        for fact in inventory.replicas:
            if fact.state != "serving" or fact.model not in self.view.models:
                continue
            detail = details.get((fact.model, fact.digest), _UNKNOWN_DETAIL)
            devices = _slots_for(inventory, detail.devices, taken)
            if len(devices) != self.view.models[fact.model].model.devices:
                continue
            taken.update(devices)
            yield reports.ReplicaFacts(
                replica_id(fact.model, fact.digest, node), fact.model, devices, _STATES[fact.state]
            )

    def _is_draining(self, node: NodeId, inventory: Inventory) -> bool:
        agreed = self._catalogue.nodes.get(node)
        return inventory.draining or (agreed is not None and agreed.cordoned)

    # -- comparing -----------------------------------------------------------------------------

    def _changes(self, known: NodeView, inventory: Inventory) -> Iterator[reports.Change]:
        draining = self._is_draining(known.node, inventory)
        if draining != known.draining:
            yield reports.DrainingSet(draining)
        yield from self._copies(known, inventory)
        details = _details(inventory)
        there = {replica_id(fact.model, fact.digest, known.node): fact for fact in inventory.replicas}
        for replica in list(known.replicas.values()):
            if replica.replica not in there and replica.state is not ReplicaState.PROMISED:
                yield from _ended(replica, {}, inventory)
                yield reports.ReplicaGone(replica.replica)
        taken = {index for replica in known.replicas.values() for index in replica.devices}
        for key, fact in there.items():
            if fact.model in self.view.models:
                detail = details.get((fact.model, fact.digest), _UNKNOWN_DETAIL)
                yield from self._replica_changes(known, inventory, key, fact, detail, taken)

    def _copies(self, known: NodeView, inventory: Inventory) -> Iterator[reports.Change]:
        tiers = {fact.digest: fact.tier for fact in inventory.checkpoints}
        for tier, held, has in (
            (Tier.DRAM, known.dram, ("dram",)),
            (Tier.SSD, known.ssd, ("dram", "ssd")),
        ):
            now = {name for name, digest in self.digests.items() if tiers.get(digest) in has}
            for name in now - set(held):
                yield reports.CopyGained(tier, name)
            for name in set(held) - now:
                yield reports.CopyLost(tier, name)

    def _replica_changes(
        self,
        known: NodeView,
        inventory: Inventory,
        key: ReplicaId,
        fact: ReplicaFact,
        detail: ReplicaDetail,
        taken: set[int],
    ) -> Iterator[reports.Change]:
        replica = known.replicas.get(key)
        promised = replica is not None and replica.state is ReplicaState.PROMISED
        asleep = replica is not None and replica.state is ReplicaState.ASLEEP
        if fact.state in ("asleep", "dozing"):
            current = self.digests.get(fact.model) == fact.digest
            if fact.state == "asleep" and current and not promised and not asleep:
                yield from _ended(replica, {}, inventory) if replica is not None else ()
                yield reports.ReplicaAsleep(key, fact.model)
            return
        begun = replica is not None and not promised and not asleep
        if not begun:
            if fact.state == "stopping" or (fact.state == "closing" and replica is not None):
                return  # the one before it, on its way out
            devices = (
                replica.devices if replica and not asleep else _slots_for(inventory, detail.devices, taken)
            )
            if len(devices) != self.view.models[fact.model].model.devices:
                return
            taken.update(devices)
            yield reports.LoadBegan(key, fact.model, devices, _source(detail.source, replica))
        loading = not begun or (replica is not None and replica.state is ReplicaState.LOADING)
        if fact.state in ("serving", "closing") and loading:
            yield reports.LoadEnded(key, detail.bytes_seconds, detail.start_seconds)
        elif fact.state == "starting" and begun and loading and detail.load_seconds > 0:
            total_bytes = self.view.models[fact.model].model.total_bytes
            loaded_bytes = min(detail.loaded_bytes, total_bytes)
            yield reports.LoadProgress(key, loaded_bytes, detail.load_seconds)
        yield from self._generation_changes(key, replica if begun else None, detail, inventory)

    def _generation_changes(
        self, key: ReplicaId, replica: ReplicaView | None, detail: ReplicaDetail, inventory: Inventory
    ) -> Iterator[reports.Change]:
        running = {each.generation: each for each in detail.generations}
        if replica is not None:
            yield from _ended(replica, running, inventory)
        before = replica.generations if replica is not None else {}
        for generation in detail.generations:
            if generation.generation not in before:
                facts = reports.GenerationFacts(
                    generation.generation, generation.tokens_in, generation.tokens_out
                )
                yield reports.GenerationBegan(key, facts)
            elif before[generation.generation].tokens_out != generation.tokens_out:
                yield reports.GenerationTokens(key, generation.generation, generation.tokens_out)

    def _close_and_reopen(self, known: NodeView, inventory: Inventory) -> None:
        for fact in inventory.replicas:
            key = replica_id(fact.model, fact.digest, known.node)
            replaced = self.digests.get(fact.model) not in (None, fact.digest)
            if fact.state in ("closing", "dozing", "stopping") or replaced:
                if key in known.replicas and known.replicas[key].state is not ReplicaState.CLOSING:
                    self.keeper.close(key)
            elif fact.state == "serving":
                self.keeper.reopen(key)


def _model(deployment: Deployment, fact: CheckpointFact, rows: int, cache_bytes: int) -> Model:
    spec, parts = deployment.spec, max(fact.partitions, 1)
    part_bytes = max(1, -(-fact.size_bytes // parts))
    return Model(
        deployment.name,
        (part_bytes,) * parts,
        (part_bytes + cache_bytes,) * parts,
        rows=rows,
        remote=bool(spec.source),
        rules=Rules(
            labels=spec.placement,
            min_replicas=spec.min_replicas,
            max_replicas=spec.max_replicas,
            target_running=float(spec.target_running),
            keep_alive_seconds=spec.stays_seconds,
        ),
    )


def _ended(
    replica: ReplicaView, running: Mapping[GenerationId, GenerationDetail], inventory: Inventory
) -> Iterator[reports.Change]:
    """Generations that run no more; the node remembers the last ones."""
    remembered = {each.generation: each for each in inventory.detail.ended}
    for generation in list(replica.generations):
        if generation in running:
            continue
        last = remembered.get(generation)
        yield reports.GenerationEnded(replica.replica, generation, last.tokens_out if last else 0)
        if last is not None and last.prefill_tokens:
            yield reports.Prefilled(replica.model.name, last.prefill_tokens, last.prefill_seconds)


def _waiting(inventory: Inventory) -> Counter[ModelName]:
    counts: Counter[ModelName] = Counter()
    for fact in inventory.replicas:
        if fact.waiting:
            counts[fact.model] += fact.waiting
    return counts


def _of_models(inventory: Inventory) -> tuple[set[object], set[object]]:
    """What an inventory tells of models, wherever their bytes are just now."""
    checkpoints: set[object] = {
        (each.digest, each.size_bytes, each.partitions) for each in inventory.checkpoints
    }
    return checkpoints, {(each.model, each.rows_max) for each in inventory.replicas}


def _details(inventory: Inventory) -> dict[tuple[ModelName, Digest], ReplicaDetail]:
    return {(each.model, each.digest): each for each in inventory.detail.replicas}


def _slots_for(inventory: Inventory, devices: tuple[str, ...], taken: set[int]) -> tuple[int, ...]:
    """A place on each of these devices; one that somebody has where all are taken."""
    found: list[int] = []
    names = slots(inventory)
    for name in devices:
        here = [index for index, each in enumerate(names) if each == name and index not in found]
        found += [index for index in here if index not in taken][:1] or here[:1]
    return tuple(found)


def _source(tier: str, promised: ReplicaView | None) -> Source:
    """Of a load that has begun: as promised, if it is that tier; a peer's name is not told."""
    load = promised.load if promised is not None else None
    if load is not None and load.source.tier == tier:
        return load.source
    return Source(Tier(tier))

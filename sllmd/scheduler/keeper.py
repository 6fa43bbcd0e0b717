"""The owner of the view: reports and promises go in, the view is right afterwards. Pure: time arrives as a
value.

Invariants: a report costs as much as what it changes, whatever the size of the cluster; what cannot be true
(an unknown replica begins a generation, a gap in the sequence, a device that does not exist) changes nothing
more of the node and asks for its inventory; a promise can be withdrawn without a trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import assert_never

from sllmd.core.ids import ModelName, NodeId, ReplicaId
from sllmd.scheduler import reports
from sllmd.scheduler.books import Contradiction, give_back, hold, path_enter, path_leave
from sllmd.scheduler.decisions import Load, Source
from sllmd.scheduler.estimate import load_seconds
from sllmd.scheduler.facts import Model, Tier
from sllmd.scheduler.feedback import generation_ended, load_ended, load_progress, prefilled, tokens_seen
from sllmd.scheduler.learning import Learned
from sllmd.scheduler.settings import SchedulerSettings
from sllmd.scheduler.view import (
    START_SECONDS,
    WAKE_SECONDS,
    ClusterView,
    DeviceView,
    GenerationView,
    LoadView,
    ModelView,
    NodeView,
    Path,
    ReplicaState,
    ReplicaView,
)

ASSUMED_BYTES_PER_SECOND: Mapping[str, float] = {"dram": 10e9, "ssd": 2e9, "peer": 1e9, "remote": 0.5e9}
"""Until a hop was measured; modest, so that nothing is chosen for a bandwidth that nobody has seen."""


class Keeper:
    """Keeps ``view``."""

    def __init__(self, settings: SchedulerSettings | None = None) -> None:
        self.view = ClusterView(settings or SchedulerSettings())

    # --- models and nodes ---

    def put_model(self, model: Model) -> None:
        """A model is deployed, or its deployment changed. Replicas that are there keep what they were made
        of, and follow the new rules."""
        self.view.version += 1
        known = self.view.models.get(model.name)
        if known is None:
            known = self.view.models[model.name] = ModelView(model)
            for node in self.view.nodes.values():
                self._index_copies(node, known)
        known.model = model
        for replica in known.replicas.values():
            replica.model = replace(replica.model, rules=model.rules)

    def drop_model(self, name: ModelName) -> None:
        """It is no longer deployed: nothing new is placed. Its replicas go when the nodes say so."""
        self.view.version += 1
        self.view.models.pop(name, None)

    def drop_node(self, node: NodeId) -> None:
        """It is no member any more: all that was there is gone."""
        self.view.version += 1
        gone = self.view.nodes.pop(node, None)
        if gone is not None:
            self._empty(gone)

    def take(self, inventory: reports.Inventory, now: float) -> None:
        """Replace all that is known of a node; what was learned of its speed stays.

        Models that are not deployed are remembered as copies and ignored as replicas.
        """
        view = self.view
        view.version += 1
        before = view.nodes.get(inventory.node)
        node = self._fresh(inventory, before, now)
        if before is not None:
            self._empty(before)
        view.nodes[node.node] = node
        view.heard_seconds = max(view.heard_seconds, now)
        for name in inventory.dram:
            self._gain(node, Tier.DRAM, name)
        for name in inventory.ssd:
            self._gain(node, Tier.SSD, name)
        for facts in inventory.replicas:
            self._add_listed(node, facts, now)

    def _fresh(self, inventory: reports.Inventory, before: NodeView | None, now: float) -> NodeView:
        def rate(hop: str) -> Learned:
            assumed = inventory.bytes_per_second.get(hop, ASSUMED_BYTES_PER_SECOND[hop])
            return Learned(assumed, self.view.settings.bandwidth_max_bytes.get(hop, float("inf")))

        devices = tuple(DeviceView(size, size, inventory.whole) for size in inventory.device_bytes)
        capacities = sorted(inventory.device_bytes, reverse=True)
        node = NodeView(
            node=inventory.node,
            name=inventory.name,
            labels=dict(inventory.labels),
            devices=devices,
            dram_bytes=inventory.dram_bytes,
            draining=inventory.draining,
            sequence=inventory.sequence,
            heard_seconds=now,
            to_device=before.to_device if before else rate("dram"),
            from_ssd=before.from_ssd if before else rate("ssd"),
            from_remote=before.from_remote if before else rate("remote"),
            from_peer=before.from_peer if before else rate("peer"),
            start=before.start if before else Learned(START_SECONDS),
            wake=before.wake if before else Learned(WAKE_SECONDS),
            pairs=before.pairs if before else {},
        )
        node.capacities, node.free = capacities, list(capacities)
        return node

    def _add_listed(self, node: NodeView, facts: reports.ReplicaFacts, now: float) -> None:
        known = self.view.models.get(facts.model)
        if known is None or not _exists(node, known.model, facts.devices):
            return
        state = ReplicaState(facts.state)
        replica = ReplicaView(facts.replica, known.model, node.node, facts.devices, state, now, now)
        self._add(replica, node)
        for generation in facts.generations:
            self._begin_generation(node, replica, generation, now)
        if state is ReplicaState.LOADING:
            replica.load = LoadView(
                Source(Tier.SSD), now, now + facts.ready_in_seconds, facts.ready_in_seconds, ()
            )

    def _empty(self, node: NodeView) -> None:
        """Take a node's replicas and copies out of every index."""
        for replica in list(node.replicas.values()):
            self._remove(replica)
        for name in node.dram:
            if name in self.view.models:
                self.view.models[name].dram_holders.pop(node.node, None)
        for name in node.ssd:
            if name in self.view.models:
                self.view.models[name].ssd_holders.pop(node.node, None)

    def heard(self, nodes: Iterable[NodeId], now: float) -> None:
        """They are well, as somebody else has found out: one that has nothing to report is not stale."""
        self.view.heard_seconds = max(self.view.heard_seconds, now)
        for node in nodes:
            known = self.view.nodes.get(node)
            if known is not None:
                known.heard_seconds = max(known.heard_seconds, now)

    # --- reports ---

    def apply(self, report: reports.Report, now: float) -> bool:
        """Take in a report. False: it did not fit to what is known, so ask the node for an inventory.

        A report that was already overtaken is dropped, and that is true as well.
        """
        node = self.view.nodes.get(report.node)
        if node is None:
            return False
        if report.sequence <= node.sequence:
            return True
        node.heard_seconds = max(node.heard_seconds, now)
        self.view.heard_seconds = max(self.view.heard_seconds, now)
        self.view.version += 1
        if not node.trusted or report.sequence != node.sequence + 1:
            node.trusted = False
            return False
        node.sequence = report.sequence
        try:
            for change in report.changes:
                self._apply(node, change, now)
        except Contradiction:
            node.trusted = False
            return False
        return True

    def _apply(self, node: NodeView, change: reports.Change, now: float) -> None:
        match change:
            case reports.GenerationTokens():
                tokens_seen(self._replica(node, change.replica), change, now)
            case reports.GenerationBegan():
                self._begin_generation(node, self._replica(node, change.replica), change.facts, now)
            case reports.GenerationEnded():
                generation_ended(self.view, node, self._replica(node, change.replica), change, now)
            case reports.LoadProgress():
                load_progress(node, self._replica(node, change.replica), change, now)
            case reports.CopyGained():
                self._gain(node, change.tier, change.model)
            case reports.CopyLost():
                self._lose(node, change.tier, change.model)
            case reports.Prefilled():
                prefilled(self.view, node, change)
            case reports.DrainingSet():
                node.draining = change.draining
            case _:
                self._apply_life(node, change, now)

    def _apply_life(
        self,
        node: NodeView,
        change: reports.LoadBegan | reports.LoadEnded | reports.ReplicaGone | reports.ReplicaAsleep,
        now: float,
    ) -> None:
        match change:
            case reports.LoadBegan():
                self._load_began(node, change, now)
            case reports.LoadEnded():
                load_ended(self.view, node, self._replica(node, change.replica), change, now)
            case reports.ReplicaGone():
                if change.replica in node.replicas:
                    self._remove(node.replicas[change.replica])
            case reports.ReplicaAsleep():
                self._fell_asleep(node, change, now)
            case _:
                assert_never(change)

    def _fell_asleep(self, node: NodeView, change: reports.ReplicaAsleep, now: float) -> None:
        """One that is not known here fell asleep before anybody told of it."""
        before = node.replicas.get(change.replica)
        known = self.view.models.get(change.model)
        if (before is not None and before.generations) or known is None:
            raise Contradiction
        model = before.model if before is not None else known.model
        used = before.used_seconds if before is not None else now
        asleep = ReplicaView(change.replica, model, node.node, (), ReplicaState.ASLEEP, now, used)
        self._add(asleep, node)

    def _replica(self, node: NodeView, replica: ReplicaId) -> ReplicaView:
        found = node.replicas.get(replica)
        if found is None:
            raise Contradiction
        return found

    # --- promises ---

    def promise(self, replica_id: ReplicaId, model: Model, load: Load, now: float) -> ReplicaView:
        """Book a decided load: devices and paths are taken from now on, before the node has said so."""
        self.view.version += 1
        node = self.view.nodes[load.node]
        if load.wakes is not None and load.wakes in node.replicas:
            self._remove(node.replicas[load.wakes])
        replica = ReplicaView(replica_id, model, load.node, load.devices, ReplicaState.PROMISED, now, now)
        self._add(replica, node)
        self._book(node, replica, load.source, load.startup_seconds, now)
        assert replica.load is not None
        replica.load.wakes = load.wakes is not None
        return replica

    def _book(
        self, node: NodeView, replica: ReplicaView, source: Source, ready_in_seconds: float, now: float
    ) -> None:
        paths = self.paths(node, replica.devices, source)
        end = now + ready_in_seconds
        replica.load = LoadView(source, end - ready_in_seconds, end, ready_in_seconds, paths)
        for path in paths:
            path_enter(path, replica.replica, end - node.start.value)

    def paths(self, node: NodeView, devices: Iterable[int], source: Source) -> tuple[Path, ...]:
        """The I/O paths that a load from ``source`` goes through."""
        links = [node.devices[index].link for index in devices]
        if source.tier is Tier.SSD:
            return (node.ssd_path, *links)
        if source.tier is Tier.REMOTE:
            return (node.in_path, *links)
        if source.tier is Tier.PEER:
            peer = self.view.nodes.get(source.peer) if source.peer else None
            return (node.in_path, *((peer.out_path,) if peer else ()), *links)
        return tuple(links)

    def withdraw(self, replica: ReplicaId) -> None:
        """A promise that came to nothing: the node refused, or the request went away."""
        found = self.view.replicas.get(replica)
        if found is not None:
            self.view.version += 1
            self._remove(found)

    def close(self, replica: ReplicaId) -> None:
        """It is to go: no new generation is placed on it."""
        found = self.view.replicas.get(replica)
        if found is not None:
            self.view.version += 1
            found.state = ReplicaState.CLOSING

    def reopen(self, replica: ReplicaId) -> None:
        """It was to go, and stays after all."""
        found = self.view.replicas.get(replica)
        if found is not None and found.state is ReplicaState.CLOSING:
            self.view.version += 1
            found.state = ReplicaState.READY

    def reserve(self, replica: ReplicaId, rows: int) -> None:
        """Keep rows for generations on their way there; negative gives them back."""
        found = self.view.replicas.get(replica)
        if found is not None:
            found.reserved_rows = max(0, found.reserved_rows + rows)

    def waiting(self, model: ModelName, count: int) -> None:
        """So many requests wait for a row of ``model``."""
        known = self.view.models.get(model)
        if known is not None:
            known.waiting = count

    def arrived(self, model: ModelName, now: float) -> None:
        """Somebody asked for a model."""
        known = self.view.models.get(model)
        if known is not None:
            known.arrivals.record(now)

    # --- the indexes ---

    def _load_began(self, node: NodeView, change: reports.LoadBegan, now: float) -> None:
        known = self.view.models.get(change.model)
        replica = node.replicas.get(change.replica)
        if known is None or not _exists(node, known.model, change.devices):
            raise Contradiction
        wakes = replica is not None and replica.state is ReplicaState.ASLEEP
        if replica is None or wakes:  # a node that had no leader began by itself
            replica = ReplicaView(
                change.replica, known.model, node.node, change.devices, ReplicaState.LOADING, now, now
            )
            self._add(replica, node)
            self._book(node, replica, change.source, 0.0, now)
            assert replica.load is not None
            replica.load.wakes = wakes
        if replica.load is None:
            raise Contradiction
        replica.state, replica.since_seconds = ReplicaState.LOADING, now
        self._estimate_again(node, replica, change.source, now)

    def _estimate_again(self, node: NodeView, replica: ReplicaView, source: Source, now: float) -> None:
        load = replica.load
        assert load is not None
        if load.source != source:
            for path in load.paths:
                path_leave(path, replica.replica)
            load.source, load.paths = source, self.paths(node, replica.devices, source)
        load.begin_seconds = now
        load.estimate_seconds = load_seconds(self.view, node, replica.model, source)
        load.estimate_seconds += (node.wake if load.wakes else node.start).value
        load.end_seconds = now + load.estimate_seconds
        for path in load.paths:
            path_enter(path, replica.replica, load.end_seconds - node.start.value)

    def _begin_generation(
        self, node: NodeView, replica: ReplicaView, facts: reports.GenerationFacts, now: float
    ) -> None:
        if facts.generation in replica.generations:
            raise Contradiction
        replica.generations[facts.generation] = GenerationView(
            facts.generation, facts.tokens_in, facts.tokens_out, facts.priority, now, now
        )
        replica.used_seconds = now
        node.running += 1

    def _add(self, replica: ReplicaView, node: NodeView) -> None:
        if replica.replica in self.view.replicas:
            self._remove(self.view.replicas[replica.replica])
        node.replicas[replica.replica] = replica
        self.view.replicas[replica.replica] = replica
        known = self.view.models.get(replica.model.name)
        if known is not None:
            known.replicas[replica.replica] = replica
        if replica.state is not ReplicaState.ASLEEP:
            hold(node, replica)

    def _remove(self, replica: ReplicaView) -> None:
        self.view.replicas.pop(replica.replica, None)
        known = self.view.models.get(replica.model.name)
        if known is not None:
            known.replicas.pop(replica.replica, None)
        if replica.load is not None:
            for path in replica.load.paths:
                path_leave(path, replica.replica)
        node = self.view.nodes.get(replica.node)
        if node is None or node.replicas.pop(replica.replica, None) is None:
            return
        node.running -= len(replica.generations)
        give_back(node, replica)

    def _gain(self, node: NodeView, tier: Tier, name: ModelName) -> None:
        known = self.view.models.get(name)
        size = known.model.total_bytes if known else 0
        if tier is Tier.DRAM and name not in node.dram:
            node.dram[name] = size
            node.dram_used_bytes += size
        elif tier is Tier.SSD:
            node.ssd[name] = size
        if known is not None:
            self._index_copies(node, known)

    def _lose(self, node: NodeView, tier: Tier, name: ModelName) -> None:
        known = self.view.models.get(name)
        if tier is Tier.DRAM:
            node.dram_used_bytes -= node.dram.pop(name, 0)
            if known is not None:
                known.dram_holders.pop(node.node, None)
        elif tier is Tier.SSD:
            node.ssd.pop(name, None)
            if known is not None:
                known.ssd_holders.pop(node.node, None)

    def _index_copies(self, node: NodeView, known: ModelView) -> None:
        if known.model.name in node.dram:
            known.dram_holders[node.node] = node
        if known.model.name in node.ssd:
            known.ssd_holders[node.node] = node


def _exists(node: NodeView, model: Model, devices: tuple[int, ...]) -> bool:
    """Whether a replica of ``model`` can hold these devices of ``node``."""
    return (
        len(devices) == model.devices == len(set(devices))
        and min(devices) >= 0
        and max(devices) < len(node.devices)
    )

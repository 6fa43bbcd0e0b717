"""This node's inventory, taken from its rooms: what it reports, and what it routes its own requests by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from sllmd.core.errors import SllmdError
from sllmd.core.ids import Digest
from sllmd.engine.tally import Run
from sllmd.loader.tier import DramTier
from sllmd.roles.admission import OFF_DEVICE, NodeView, ReplicaState
from sllmd.roles.agent import Agent
from sllmd.roles.inventory import (
    CheckpointFact,
    Detail,
    DeviceFact,
    GenerationDetail,
    HeldTier,
    Inventory,
    ReplicaDetail,
    ReplicaFact,
)
from sllmd.roles.library import Library
from sllmd.roles.residence import Residence
from sllmd.store.store import Store, StoredModel
from sllmd.text.tokenizer import read_context_tokens

MAPPED_BYTES_PER_SECOND = 1e15
"""From DRAM to a CPU: a worker maps the memory that its model is in, and nothing moves."""


class Stock:
    """Takes inventories; cheap enough for several a second."""

    def __init__(self, agent: Agent, tier: DramTier, library: Library, chunk_port: Callable[[], int]) -> None:
        self._agent = agent
        self._tier = tier
        self._library = library
        self._chunk_port = chunk_port
        self._facts: dict[StoredModel, CheckpointFact | None] = {}
        """What does not change about a stored model; None: it cannot be read."""
        self.name = ""
        self.labels: Mapping[str, str] = {}
        """Of this node, as others know it."""

    def take_all(self) -> Inventory:
        """The same with what only the leader is told."""
        return replace(self.take(), detail=self._detail())

    def _detail(self) -> Detail:
        residences = self._agent.residences()
        tallies = [each.replica.tally for each in residences if each.replica is not None]
        view = self._agent.view()
        rates = self._tier.rates()
        if all(device.memory_bytes is None for device in view.devices):
            rates.setdefault("dram", MAPPED_BYTES_PER_SECOND)
        return Detail(
            name=self.name,
            labels=dict(self.labels),
            dram_bytes=view.dram_budget_bytes,
            rows=self._agent.rows,
            cache_bytes=self._agent.cache_bytes,
            rates=rates,
            replicas=tuple(map(_replica_detail, residences)),
            ended=_generations(run for tally in tallies for run in tally.ended()),
        )

    def take(self) -> Inventory:
        """What there is now. Raises StoreError."""
        view = self._agent.view()
        return Inventory(
            replicas=tuple(
                ReplicaFact(
                    replica.model,
                    replica.digest,
                    replica.state.value,
                    replica.running,
                    self._agent.waiting(replica.model),
                    replica.rows_max,
                )
                for replica in view.replicas
            ),
            checkpoints=self._checkpoints(),
            devices=_devices(view),
            draining=self._agent.draining,
            drained_since_seconds=self._agent.drained_since_seconds or 0.0,
            chunk_port=self._chunk_port(),
        )

    def _checkpoints(self) -> tuple[CheckpointFact, ...]:
        in_memory = {copy.digest for copy in self._tier.stats().copies if copy.loaded}
        found: dict[Digest, CheckpointFact] = {}
        stored = [(model, store) for store in self._library.stores() for model in store.models()]
        self._facts = {model: self._facts[model] for model, _ in stored if model in self._facts}
        for model, store in stored:
            if model.problem is not None:
                continue
            if model not in self._facts:
                self._facts[model] = _fact(model, store, adopted=store is not self._library.own)
            fact = self._facts[model]
            if fact is None:
                continue
            if model.digest in in_memory:
                fact = replace(fact, tier="dram")
            known = found.get(model.digest)
            if known is None:
                found[model.digest] = fact
            elif known.tier == "files":
                found[model.digest] = replace(fact, adopted=known.adopted)
        return tuple(found.values())


def _fact(model: StoredModel, store: Store, *, adopted: bool) -> CheckpointFact | None:
    try:
        checkpoint = store.resolve(model.name)
        context_tokens = read_context_tokens(checkpoint.directory)
    except SllmdError:
        return None
    tier: HeldTier = "files" if checkpoint.remote_url is not None else "ssd"
    return CheckpointFact(
        digest=model.digest,
        tier=tier,
        size_bytes=model.size_bytes,
        architecture=model.architecture,
        context_tokens=context_tokens,
        partitions=len(checkpoint.manifest.partitions),
        created_seconds=int(model.imported_at),
        adopted=adopted,
    )


def _replica_detail(residence: Residence) -> ReplicaDetail:
    lease, replica = residence.lease, residence.replica
    serves = residence.state is ReplicaState.SERVING
    loading = lease.progress() if lease is not None and not serves else None
    stages = residence.stages_seconds
    return ReplicaDetail(
        model=residence.need.model,
        digest=residence.need.digest,
        devices=residence.devices,
        source=residence.tier,
        loaded_bytes=loading.bytes_done if loading is not None else 0,
        load_seconds=loading.seconds if loading is not None and loading.state == "loading" else 0.0,
        bytes_seconds=stages.get(f"{residence.tier}→dram", 0.0) + stages.get("dram→device", 0.0),
        start_seconds=stages.get("attach", stages.get("wake", 0.0)),
        generations=_generations(replica.tally.running.values()) if replica is not None else (),
    )


def _generations(runs: Iterable[Run]) -> tuple[GenerationDetail, ...]:
    return tuple(
        GenerationDetail(
            run.generation_id, run.tokens_in, run.tokens_out, run.prefill_tokens, run.prefill_seconds
        )
        for run in runs
    )


def _devices(view: NodeView) -> tuple[DeviceFact, ...]:
    def taken_bytes(name: str) -> int:
        return sum(
            size_bytes
            for replica in view.replicas
            for device, size_bytes in zip(replica.devices, replica.device_bytes, strict=True)
            if device == name and replica.state is not ReplicaState.ASLEEP
        )

    return tuple(
        DeviceFact(
            name=device.name,
            memory_bytes=device.memory_bytes,
            free_bytes=None
            if device.memory_bytes is None
            else max(0, device.memory_bytes - taken_bytes(device.name)),
            replicas=sum(
                device.name in replica.devices and replica.state not in OFF_DEVICE
                for replica in view.replicas
            ),
            replicas_max=device.replicas_max,
        )
        for device in view.devices
    )

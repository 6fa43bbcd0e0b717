"""What models there are and what their names stand for: this node's store, and the cluster's catalogue.

Owns: the choice between a store's own copy and the cluster's (by ``naming``), and the *adopted* store, which
holds what this node got from others: first the manifest and the small files, later, with the first load, the
weights. Start at ``checkpoint`` and ``obtain``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sllmd.cluster.catalogue.records import Deployment
from sllmd.cluster.control import View
from sllmd.core.errors import ControlUnavailable, MalformedCheckpoint, ModelMissing, ModelNotFound, NotHere
from sllmd.core.ids import Digest, ModelName, NodeId
from sllmd.loader.peer import PEERS_ONLY_URL
from sllmd.roles.inventory import CheckpointFact
from sllmd.roles.naming import Deployed, Own, conflict_of, serves_own
from sllmd.roles.table import Table
from sllmd.store.checkpoint import Checkpoint
from sllmd.store.digest import manifest_digest
from sllmd.store.directory import MANIFEST_FILE, parse_manifest, small_digests, write_manifest
from sllmd.store.durable import write_file
from sllmd.store.store import Store, StoredModel

Files = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Shared:
    """What a library knows of the cluster."""

    node: NodeId
    """This one."""
    adopted: Store
    view: Callable[[], View]
    table: Callable[[], Table]
    fetch: Callable[[Digest], Awaitable[Files]]
    """A checkpoint's manifest and small files, from whoever has them. Raises NotHere."""
    had: Callable[[Digest], str | None] = lambda _digest: None
    """The name of a node that went and had it."""


class Library:
    """See the module. Without ``shared``: the store alone."""

    def __init__(self, own: Store) -> None:
        self.own = own
        self.deployed: Mapping[ModelName, Deployed] = {}
        """What ``deployments`` remembers."""
        self.refused: Mapping[ModelName, str] = {}
        """Why the catalogue did not take a name."""
        self._shared: Shared | None = None
        self._adopting: dict[tuple[ModelName, Digest], asyncio.Task[Checkpoint]] = {}

    def share(self, shared: Shared) -> None:
        """From now on names are the cluster's."""
        self._shared = shared

    # -- names ---------------------------------------------------------------------------------

    def models(self) -> list[StoredModel]:
        """All models, by name."""
        stored = {model.name: model for model in self.own.models()}
        deployments = self._deployments()
        names = sorted({*stored, *map(ModelName, deployments)})
        return [self._shown(stored.get(name), deployments.get(name)) for name in names]

    def model(self, name: str) -> StoredModel:
        """What a name or alias stands for. Raises ModelNotFound, ControlUnavailable, MalformedCheckpoint."""
        return self._shown(*self._meaning(name))

    def _meaning(self, name: str) -> tuple[StoredModel | None, Deployment | None]:
        """The store's model if it is served, and the deployment of the name, if there is one."""
        deployment = self._deployment(name)
        own = self._own(deployment.name) if deployment is not None else self._stored(name)
        if deployment is None and own is not None:
            deployment = self._deployment(own.name)
        if own is not None and self._serves(own, deployment):
            return own, deployment
        if deployment is None:
            assert own is not None
            raise ModelNotFound(self._conflict(own, None) or "", param="model")
        return None, deployment

    def _deployments(self) -> dict[str, Deployment]:
        return dict(self._shared.view().catalogue.deployments.items()) if self._shared is not None else {}

    def _deployment(self, name: str) -> Deployment | None:
        if self._shared is None:
            return None
        catalogue = self._shared.view().catalogue
        deployed = catalogue.names.get(name)
        return catalogue.deployments.get(deployed) if deployed is not None else None

    def _stored(self, name: str) -> StoredModel:
        """The store's model of a name that is not deployed, as far as this node knows.

        Raises ModelNotFound, or ControlUnavailable when it knows nothing of the cluster yet.
        """
        try:
            return self.own.model(name)
        except ModelNotFound:
            if self._shared is not None and math.isinf(self._shared.view().age_seconds):
                raise ControlUnavailable(
                    f"whether there is a model `{name}` is not known yet: this node has just started and"
                    " has not heard of the cluster's models",
                    retry_after_seconds=1,
                ) from None
            raise

    def _own(self, name: ModelName) -> StoredModel | None:
        """The store's entry of exactly this name."""
        try:
            stored = self.own.model(name)
        except (ModelNotFound, MalformedCheckpoint):
            return None
        return stored if stored.name == name else None

    def _serves(self, stored: StoredModel, deployment: Deployment | None) -> bool:
        return self._shared is None or serves_own(as_own(stored), deployment, self.deployed.get(stored.name))

    def _conflict(self, stored: StoredModel, deployment: Deployment | None) -> str | None:
        return conflict_of(as_own(stored), deployment, self.deployed.get(stored.name))

    def _shown(self, stored: StoredModel | None, deployment: Deployment | None) -> StoredModel:
        if stored is None:
            assert deployment is not None
            return self._foreign(deployment, None)
        if self._serves(stored, deployment):
            more = deployment.spec.aliases if deployment is not None else ()
            aliases = tuple(dict.fromkeys((*stored.aliases, *more)))
            return replace(stored, aliases=aliases, problem=stored.problem or self.refused.get(stored.name))
        conflict = self._conflict(stored, deployment)
        if deployment is None:
            return replace(stored, problem=conflict)
        return self._foreign(deployment, conflict)

    def _foreign(self, deployment: Deployment, problem: str | None) -> StoredModel:
        """The cluster's model of a name, from what is here or else from what other nodes tell."""
        assert self._shared is not None
        digest = deployment.spec.digest
        fact = self._shared.table().checkpoint(digest)
        local = self._local(deployment.name, digest)
        if local is None and fact is None:
            problem = problem or str(self._missing(deployment))
        manifest = local.manifest if local is not None else None
        return StoredModel(
            name=deployment.name,
            aliases=deployment.spec.aliases,
            digest=digest,
            size_bytes=manifest.size_bytes if manifest else fact.size_bytes if fact else 0,
            kind="remote",
            architecture=manifest.architecture if manifest else fact.architecture if fact else "",
            imported_at=fact.created_seconds if fact else 0,
            problem=problem,
        )

    def is_missing(self, stored: StoredModel) -> bool:
        """Whether no node that is here has a byte of it."""
        known = self._shared is not None and self._deployment(stored.name) is not None
        if not known or self.fact(stored.digest) is not None:
            return False
        return self._own(stored.name) is None and self._local(stored.name, stored.digest) is None

    def _missing(self, deployment: Deployment) -> ModelMissing:
        assert self._shared is not None
        name, had = deployment.name, self._shared.had(deployment.spec.digest)
        remedies = f"import `{name}` again, or take it away with `sllmd rm {name}`"
        if had is None:
            hint = f"start the node that had it, {remedies}"
            return ModelMissing(f"no node that is here has `{name}`", hint=hint)
        return ModelMissing(
            f"no node that is here has `{name}`: {had} had it", hint=f"start {had}, {remedies}"
        )

    def fact(self, digest: Digest) -> CheckpointFact | None:
        """What other nodes tell of a checkpoint."""
        return self._shared.table().checkpoint(digest) if self._shared is not None else None

    def state_elsewhere(self, name: ModelName, digest: Digest) -> str | None:
        """The best state of its replicas on other nodes; None: there are none."""
        if self._shared is None:
            return None
        states = self._shared.table().states(name, digest, besides=self._shared.node)
        return next((state for state in ("serving", "starting", *states) if state in states), None)

    # -- checkpoints ---------------------------------------------------------------------------

    def checkpoint(self, name: str) -> Checkpoint:
        """What ``name`` stands for, as it is on this node. Raises as ``model``, NotHere, or as the store."""
        own, deployment = self._meaning(name)
        if own is not None:
            return self.own.resolve(own.name)
        assert deployment is not None
        local = self._local(deployment.name, deployment.spec.digest)
        if local is None:
            raise NotHere(f"no byte of `{deployment.name}` is on this node yet")
        return local

    async def obtain(self, name: str) -> Checkpoint:
        """As ``checkpoint``, after its small files were fetched from another node where need be.

        Raises ModelMissing where no node that is here has them.
        """
        own, deployment = self._meaning(name)
        if own is not None:
            return self.own.resolve(own.name)
        assert deployment is not None
        try:
            return await self.obtain_exactly(deployment.name, deployment.spec.digest)
        except NotHere:
            if self.fact(deployment.spec.digest) is not None:
                raise  # somebody has it, and gives it not just now
            raise self._missing(deployment) from None

    async def obtain_exactly(self, name: ModelName, digest: Digest) -> Checkpoint:
        """This checkpoint, whatever the name stands for now. Raises NotHere."""
        local = self._local(name, digest)
        if local is not None:
            return local
        if self._shared is None:
            raise NotHere(f"`{name}` ({digest[:12]}) is not on this node")
        key = name, digest
        if key not in self._adopting:
            adopting = asyncio.create_task(self._adopt(name, digest, self._shared))
            self._adopting[key] = adopting
            adopting.add_done_callback(lambda done: self._adopted(key, done))
        return await asyncio.shield(self._adopting[key])

    def _adopted(self, key: tuple[ModelName, Digest], done: asyncio.Task[Checkpoint]) -> None:
        del self._adopting[key]
        if not done.cancelled():
            done.exception()  # whoever waits gets it; everybody may have left

    async def _adopt(self, name: ModelName, digest: Digest, shared: Shared) -> Checkpoint:
        files = await shared.fetch(digest)
        deployment = shared.view().catalogue.deployments.get(name)
        same = deployment is not None and deployment.spec.digest == digest
        source = deployment.spec.source if deployment is not None and same else ""
        return await asyncio.to_thread(adopt, shared.adopted, name, digest, files, source or PEERS_ONLY_URL)

    def _local(self, name: ModelName, digest: Digest) -> Checkpoint | None:
        for store in self.stores():
            try:
                checkpoint = store.resolve(name)
            except (ModelNotFound, MalformedCheckpoint):
                continue
            if checkpoint.name == name and checkpoint.manifest.digest == digest:
                return checkpoint
        return None

    def find(self, digest: Digest) -> Checkpoint | None:
        """A checkpoint by its bytes, with its weights where it can be. Threads may call it."""
        found = None
        for store in self.stores():
            for stored in store.models():
                if stored.digest == digest and stored.problem is None:
                    checkpoint = store.resolve(stored.name)
                    if checkpoint.remote_url is None:
                        return checkpoint
                    found = checkpoint
        return found

    def stores(self) -> Sequence[Store]:
        """Where checkpoints of this node are: its own store first."""
        return (self.own, self._shared.adopted) if self._shared is not None else (self.own,)

    # -- what the loader does with them ----------------------------------------------------------

    def quarantine(self, checkpoint: Checkpoint, file: str, chunk_index: int) -> str:
        """As ``Store.quarantine``, in the store that has it."""
        return self._store_of(checkpoint).quarantine(checkpoint, file, chunk_index)

    def complete_remote(
        self, checkpoint: Checkpoint, chunk_digests: Mapping[str, Sequence[str]]
    ) -> Checkpoint:
        """As ``Store.complete_remote``, in the store that has it."""
        return self._store_of(checkpoint).complete_remote(checkpoint, chunk_digests)

    def _store_of(self, checkpoint: Checkpoint) -> Store:
        shared = self._shared
        if shared is not None and checkpoint.directory.is_relative_to(shared.adopted.root):
            return shared.adopted
        return self.own


def as_own(stored: StoredModel) -> Own:
    """A store's entry as ``naming`` sees it."""
    return Own(stored.name, stored.digest, stored.imported_at)


def adopt(store: Store, name: ModelName, digest: Digest, files: Files, url: str) -> Checkpoint:
    """Put what another node sent into ``store``, believed only as far as its digest goes; blocks.

    Raises MalformedCheckpoint, StoreError.
    """
    with store.importing(name) as staging:
        directory = staging / "checkpoint"
        directory.mkdir()
        manifest = parse_manifest(files.get(MANIFEST_FILE, b""), MANIFEST_FILE)
        for file in manifest.small_files:
            if file in files:
                write_file(directory / file, files[file])
        if manifest_digest(manifest, small_digests(directory, manifest.small_files)) != digest:
            raise MalformedCheckpoint(f"the files of `{name}` that another node sent do not fit its digest")
        write_manifest(directory, manifest)
        return store.publish(directory, manifest, name=name, kind="remote", remote_url=url)

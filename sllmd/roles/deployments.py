"""What is imported on this node is deployed in the cluster, and what the cluster deletes is served no more.

Owns: the memory of what this node deployed (a file), and the loop that makes catalogue and store agree by
``naming``. It looks at the store once a second (a stat each, when nothing changed) and asks the leader only
when there is something to change. While nobody leads, it waits: what is in the store is served meanwhile.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from sllmd.cluster.catalogue.commands import DeploymentPut
from sllmd.cluster.catalogue.records import Deployment, DeploymentSpec, Replica
from sllmd.cluster.catalogue.results import Denied, Done, Reason
from sllmd.cluster.catalogue.state import Catalogue
from sllmd.cluster.catalogue.table import Table
from sllmd.cluster.control import ControlStore
from sllmd.core.errors import BusyError, ModelNotFound, OutcomeUnknown, SllmdError, StoreError
from sllmd.core.ids import Digest, ModelName
from sllmd.roles.library import Library, as_own
from sllmd.roles.naming import Deployed, Offer, reconcile
from sllmd.roles.retiring import propose_retiring
from sllmd.roles.settings import ModelSettings
from sllmd.store.durable import replace_file, store_errors
from sllmd.store.store import Store, StoredModel
from sllmd.telemetry.supervising import end_tasks, keep_running

LOOK_SECONDS = 1.0
"""How long an import may go unnoticed by other nodes; this node sees it at once."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was compared. Not a revision: that counts every command, the refused ones of this room, too."""

    stored: Sequence[StoredModel]
    deployments: Table[Deployment]
    replicas: Table[Replica]
    """While there are some, a deployment cannot be deleted."""

    def is_all_of(self, stored: Sequence[StoredModel], catalogue: Catalogue) -> bool:
        """Whether nothing has changed since. A table that nobody changed stays the same object."""
        same = self.deployments is catalogue.deployments and self.replicas is catalogue.replicas
        return same and self.stored == stored


class Deployments:
    """See the module."""

    def __init__(
        self,
        library: Library,
        adopted: Store,
        models: Mapping[str, ModelSettings],
        memory: Path,
        *,
        elsewhere: Callable[[], Collection[Digest]],
        in_use: Callable[[ModelName], bool],
        changed: Callable[[], None],
        retire: Callable[[ModelName], Awaitable[None]],
    ) -> None:
        """``memory``: the file that remembers; ``elsewhere``: checkpoints that other nodes imported.

        ``retire`` has a model's replicas go. ``changed`` is called when the store has: who hears of a model
        should know by then who has it.
        """
        self._library = library
        self._adopted = adopted
        self._models = models
        self._memory = memory
        self._elsewhere = elsewhere
        self._in_use = in_use
        self._changed = changed
        self._retire = retire
        self._cluster_id = ""
        self._seen: _Seen | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, control: ControlStore, cluster_id: str) -> None:
        """Begin. Raises StoreError when the memory cannot be read."""
        self._cluster_id = cluster_id
        self._library.deployed = read_memory(self._memory, cluster_id)
        self._task = keep_running(lambda: self._run(control))

    async def close(self) -> None:
        """Stop."""
        await end_tasks(self._task)

    async def _run(self, control: ControlStore) -> None:
        while True:
            try:
                await self._look(control)
            except (BusyError, OutcomeUnknown) as error:
                _log.debug("deployments wait", reason=str(error))
            except SllmdError as error:
                _log.warning("deployments cannot be compared with the store", reason=str(error))
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, control: ControlStore) -> None:
        stored = self._library.own.models()
        known = control.view().catalogue
        if self._seen is not None and self._seen.is_all_of(stored, known):
            await self._forget(known)  # it may have been in use when its deployment went
            return
        self._changed()
        catalogue = await control.read()
        gone = {name for name in self._library.deployed if _is_gone(self._library.own, name)}
        offers = {model.name: self._offer(model) for model in stored if model.problem is None}
        steps = reconcile(offers, catalogue, self._library.deployed, gone=gone, elsewhere=self._elsewhere())
        deployed = dict(steps.deployed)
        refused = {name: reason for name, reason in self._library.refused.items() if name not in gone}
        for command in steps.commands:
            result = await propose_retiring(control, command, self._retire)
            if not isinstance(command, DeploymentPut):
                continue
            refused.pop(command.name, None)
            if isinstance(result, Done):  # at once: it may be imported anew before the next look
                own, spec = offers[command.name].own, offers[command.name].spec
                deployed[command.name] = Deployed(own.digest, own.imported_at, aliases=spec.aliases)
            elif isinstance(result, Denied) and result.reason is Reason.NAME_TAKEN:
                refused[command.name] = f"`{command.name}` is not deployed in the cluster: {result.message}"
                if command.name not in self._library.refused:
                    _log.error("model not deployed", model=command.name, reason=result.message)
        self._library.refused = refused
        await self._remember(deployed)
        await self._forget(catalogue)
        self._seen = _Seen(stored, catalogue.deployments, catalogue.replicas)

    def _offer(self, model: StoredModel) -> Offer:
        own = self._models.get(model.name, ModelSettings())
        spec = DeploymentSpec(
            digest=model.digest,
            source=model.remote_url or "",
            aliases=tuple(ModelName(alias) for alias in model.aliases),
            keep_alive_seconds=own.keep_alive,
            min_replicas=own.replicas_min,
            max_replicas=own.replicas_max,
            target_running=own.running_target,
        )
        return Offer(as_own(model), spec)

    async def _remember(self, deployed: Mapping[ModelName, Deployed]) -> None:
        if deployed == self._library.deployed:
            return
        await asyncio.to_thread(write_memory, self._memory, self._cluster_id, deployed)
        self._library.deployed = deployed

    async def _forget(self, catalogue: Catalogue) -> None:
        """What came from others and is deployed no more goes, when nothing runs of it."""
        for model in self._adopted.models():
            if model.name not in catalogue.deployments and not self._in_use(model.name):
                await asyncio.to_thread(self._adopted.remove, model.name)


def _is_gone(store: Store, name: ModelName) -> bool:
    """It was removed; one that cannot be read is not gone."""
    try:
        return store.model(name).name != name
    except ModelNotFound:
        return True
    except SllmdError:
        return False


def read_memory(path: Path, cluster_id: str) -> dict[ModelName, Deployed]:
    """What was deployed in this cluster from this node. Raises StoreError."""
    try:
        raw = json.loads(path.read_bytes())
        if raw["cluster"] != cluster_id:
            return {}
        return {ModelName(name): _deployed(fields) for name, fields in raw["deployed"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise StoreError(
            f"{path} cannot be read: {error}",
            hint="remove it: models of this node that were deleted in the cluster are then deployed again",
        ) from error


def _deployed(fields: dict[str, Any]) -> Deployed:
    aliases = tuple(fields.pop("aliases", ()))  # an older sllmd wrote none
    return Deployed(**fields, aliases=aliases)


def write_memory(path: Path, cluster_id: str, deployed: Mapping[ModelName, Deployed]) -> None:
    """The inverse, durable. Raises StoreError."""
    raw = {name: asdict(each) for name, each in deployed.items()}
    with store_errors(f"remember what is deployed in {path}"):
        replace_file(path, json.dumps({"cluster": cluster_id, "deployed": raw}, indent=1).encode())

"""What a name stands for on this node, where its store and the cluster's catalogue may differ. Pure.

Every model that is imported on a node is deployed in the cluster under its name. The rules:

1. a name that is only in the store is served from there, and deployed;
2. a name of the same checkpoint in both is served from the store;
3. one that this node deployed and imported anew since is served from the store, and deployed again;
4. any other name of two checkpoints is the cluster's: the store's copy stays, unserved, with an error;
5. a name that this node deployed and that was deleted since is *withdrawn*: the copy stays, unserved, until
   it is imported again;
6. a name that this node deployed and then removed is deleted in the cluster, unless others imported it, too;
7. an alias that this node's store had and has no longer is taken from the cluster's model; those that other
   nodes gave it stay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from sllmd.cluster.catalogue.commands import Body, DeploymentDelete, DeploymentPut
from sllmd.cluster.catalogue.records import Deployment, DeploymentSpec
from sllmd.cluster.catalogue.state import Catalogue
from sllmd.core.ids import Digest, ModelName


@dataclass(frozen=True, slots=True)
class Own:
    """A model in this node's store."""

    name: ModelName
    digest: Digest
    imported_at: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A model in this node's store, and how its owner wants it deployed."""

    own: Own
    spec: DeploymentSpec


@dataclass(frozen=True, slots=True)
class Deployed:
    """What this node remembers of a name: the checkpoint that it last saw deployed and in its store."""

    digest: Digest
    imported_at: float
    withdrawn: bool = False
    aliases: tuple[ModelName, ...] = ()
    """What this node's store called it besides."""


def serves_own(own: Own | None, deployment: Deployment | None, deployed: Deployed | None) -> bool:
    """Whether the name stands for the store's checkpoint; False: for the cluster's, or for none."""
    if own is None:
        return False
    if deployment is None:  # 5, else 1
        return deployed is None or not deployed.withdrawn or deployed.imported_at != own.imported_at
    if deployment.spec.digest == own.digest:  # 2
        return True
    return deployed is not None and deployed.digest == deployment.spec.digest  # 3, else 4


@dataclass(frozen=True, slots=True)
class Steps:
    """What to ask of the catalogue, and what to remember."""

    commands: tuple[Body, ...]
    deployed: Mapping[ModelName, Deployed]


def reconcile(
    offers: Mapping[ModelName, Offer],
    catalogue: Catalogue,
    deployed: Mapping[ModelName, Deployed],
    *,
    gone: Collection[ModelName],
    elsewhere: Collection[Digest],
) -> Steps:
    """How to make the catalogue say what the store has.

    ``gone``: deployed names that the store has no longer; ``elsewhere``: what other nodes imported.
    """
    commands: list[Body] = []
    remembered = dict(deployed)
    for name, offer in offers.items():
        own = offer.own
        deployment = catalogue.deployments.get(name)
        known = deployed.get(name)
        if deployment is None:
            if known is not None and known.imported_at == own.imported_at:  # 5
                remembered[name] = replace(known, withdrawn=True)
            else:  # 1
                commands.append(DeploymentPut(name, offer.spec, expected=0))
        elif deployment.spec.digest == own.digest:  # 2
            before = known.aliases if known is not None else ()
            merged = _merged(deployment.spec, offer.spec, before)
            unchanged = merged == deployment.spec
            # What the store had before is known until the cluster has followed.
            aliases = offer.spec.aliases if unchanged else before
            remembered[name] = Deployed(own.digest, own.imported_at, aliases=aliases)
            if not unchanged:
                commands.append(DeploymentPut(name, merged, expected=deployment.revision))
        elif serves_own(own, deployment, known):  # 3
            commands.append(DeploymentPut(name, offer.spec, expected=deployment.revision))
    for name, known in deployed.items():
        if name not in gone:
            continue
        deployment = catalogue.deployments.get(name)
        mine = deployment is not None and deployment.spec.digest == known.digest
        if deployment is not None and mine and known.digest not in elsewhere:  # 6
            commands.append(DeploymentDelete(name, expected=deployment.revision))
        else:
            del remembered[name]
    return Steps(tuple(commands), remembered)


def _merged(theirs: DeploymentSpec, ours: DeploymentSpec, before: Collection[ModelName]) -> DeploymentSpec:
    """Nodes that have the same model may know it by other names: it has all of them, but for those that were
    ours ``before`` and are no longer (7)."""
    kept = [alias for alias in theirs.aliases if alias in ours.aliases or alias not in before]
    return replace(theirs, aliases=tuple(dict.fromkeys((*kept, *ours.aliases))))


def conflict_of(own: Own, deployment: Deployment | None, deployed: Deployed | None) -> str | None:
    """Why the store's copy is not served under its name."""
    if serves_own(own, deployment, deployed):
        return None
    if deployment is None:
        return f"`{own.name}` was deleted in the cluster; import it again to deploy it"
    return (
        f"`{own.name}` is another checkpoint in this node's store ({own.digest[:12]}) than in the cluster"
        f" ({deployment.spec.digest[:12]}), which is served; import this node's copy under another name"
    )

"""What the catalogue should say of replicas, given what there is: confirmations, losses, adoptions. Pure.

1. an intent whose replica serves is ready;
2. an intent whose replica is not there, or sleeps, and that nobody is carrying out, is gone; that of a node
   that is dead, too: otherwise its model could not be deleted before the node comes back;
3. a replica that a node started by itself, while nobody led, or that comes back with its node, becomes an
   intent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from sllmd.cluster.catalogue.commands import Body, ReplicaGone, ReplicaIntent, ReplicaMove, ReplicaPlan
from sllmd.cluster.catalogue.records import Replica
from sllmd.cluster.catalogue.records import ReplicaState as Agreed
from sllmd.cluster.catalogue.state import Catalogue
from sllmd.core.ids import ModelName, NodeId, ReplicaId
from sllmd.roles.inventory import Inventory
from sllmd.roles.picture import Picture, slots
from sllmd.scheduler.facts import Model
from sllmd.scheduler.view import ReplicaState, ReplicaView


def intent(
    replica: ReplicaId, model: Model, node: NodeId, devices: tuple[int, ...], inventory: Inventory
) -> ReplicaIntent:
    """What is to be agreed of a replica: its devices by name, and what it takes of each."""
    names = slots(inventory)
    taken: dict[str, int] = {}
    for part, index in enumerate(devices):
        taken[names[index]] = taken.get(names[index], 0) + model.device_bytes[part]
    return ReplicaIntent(replica, model.name, node, taken)


def repairs(
    catalogue: Catalogue, picture: Picture, under_way: Collection[ReplicaId], alive: Collection[NodeId]
) -> Iterator[Body]:
    """The commands that make it true; numbers as in the module. ``under_way``: being carried out just now;
    ``alive``: nodes that are well."""
    for agreed in catalogue.replicas.values():
        if agreed.replica not in under_way and agreed.node in picture.view.nodes:
            yield from _repair(agreed, picture.view.replicas.get(agreed.replica))
        elif agreed.node not in catalogue.nodes:
            yield ReplicaGone(agreed.replica, agreed.revision, "its node is no member")
        elif agreed.node not in alive and agreed.node not in picture.view.nodes:  # 2
            yield ReplicaGone(agreed.replica, agreed.revision, "its node is dead")
    for replica in picture.view.replicas.values():
        serves = replica.state is ReplicaState.READY
        if serves and catalogue.replicas.get(replica.replica) is None and replica.replica not in under_way:
            yield from _adoption(catalogue, picture, replica)  # 3


def _repair(agreed: Replica, replica: ReplicaView | None) -> Iterator[Body]:
    if replica is None or replica.state is ReplicaState.ASLEEP:  # 2
        cause = "it is not there" if replica is None else "it sleeps, and holds no device"
        yield ReplicaGone(agreed.replica, agreed.revision, cause)
    elif replica.state is ReplicaState.READY and agreed.state is not Agreed.READY:  # 1
        yield ReplicaMove(agreed.replica, Agreed.READY, agreed.revision)


def _adoption(catalogue: Catalogue, picture: Picture, replica: ReplicaView) -> Iterator[Body]:
    deployed = catalogue.deployments.get(ModelName(replica.model.name)) is not None
    node = catalogue.nodes.get(replica.node)
    if deployed and node is not None and not node.cordoned:
        inventory = picture.inventories[replica.node]
        yield ReplicaPlan((intent(replica.replica, replica.model, replica.node, replica.devices, inventory),))

"""The catalogue as bytes and back. Pure.

The bytes are the same on every node for the same state: tables are written in their keys' order.
"""

from __future__ import annotations

from typing import Any

from sllmd.cluster.catalogue import records
from sllmd.cluster.catalogue.fleet import with_books
from sllmd.cluster.catalogue.results import Denied, Done, PlanResult
from sllmd.cluster.catalogue.state import Catalogue, Client
from sllmd.cluster.catalogue.table import Table
from sllmd.cluster.codec import Codec, pack, unpack
from sllmd.core.errors import ProtocolError

VERSION = 1

_CODEC = Codec(
    {
        1: records.Node,
        2: records.Deployment,
        3: records.Replica,
        4: records.ApiKey,
        5: records.JoinToken,
        6: records.Setting,
        7: Done,
        8: Denied,
        9: PlanResult,
        10: records.RemovedNode,
    }
)
_TABLES = ("nodes", "deployments", "replicas", "api_keys", "tokens", "settings", "removed")


def snapshot(state: Catalogue) -> bytes:
    """Everything that is agreed."""
    tables = [[_CODEC.encode(record) for record in getattr(state, name).values()] for name in _TABLES]
    clients = [[key, *_pack_client(client)] for key, client in state.clients.items()]
    return pack([VERSION, state.revision, state.epoch, tables, clients])


def restore(data: bytes) -> Catalogue:
    """The inverse; raises ProtocolError."""
    match unpack(data):
        case [int(version), int(revision), int(epoch), [*tables], [*clients]]:
            pass
        case _:
            version, tables = 0, []
    if version != VERSION or len(tables) != len(_TABLES):
        raise ProtocolError(f"not a catalogue snapshot of version {VERSION}")
    found = {
        name: [_CODEC.decode(item) for item in items] for name, items in zip(_TABLES, tables, strict=True)
    }
    state = Catalogue(
        revision=revision,
        epoch=epoch,
        nodes=Table((one.node, one) for one in found["nodes"]),
        deployments=Table((one.name, one) for one in found["deployments"]),
        names=Table(_names(found["deployments"])),
        api_keys=Table((one.key_id, one) for one in found["api_keys"]),
        tokens=Table((one.token_id, one) for one in found["tokens"]),
        settings=Table((one.key, one) for one in found["settings"]),
        removed=Table((one.node, one) for one in found["removed"]),
        clients=Table((item[0], _unpack_client(item[1:])) for item in clients),
    )
    return with_books(state, found["replicas"])


def _names(deployments: list[records.Deployment]) -> list[tuple[str, str]]:
    return [(name, one.name) for one in deployments for name in (one.name, *one.spec.aliases)]


def _pack_client(client: Client) -> list[Any]:
    results = [[seq, _CODEC.encode(result)] for seq, result in sorted(client.results.items())]
    return [client.label, client.last_used, client.answered_below, results]


def _unpack_client(items: list[Any]) -> Client:
    match items:
        case [str(label), int(last_used), int(answered_below), [*results]]:
            found = {int(seq): _CODEC.decode(item) for seq, item in results}
            return Client(label, last_used, answered_below, found)
    raise ProtocolError("not a client's memory")

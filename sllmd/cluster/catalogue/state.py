"""The catalogue's state: immutable, so that a reader keeps a consistent view for nothing. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from sllmd.cluster.catalogue.records import (
    ApiKey,
    Deployment,
    JoinToken,
    Node,
    RemovedNode,
    Replica,
    Setting,
)
from sllmd.cluster.catalogue.results import Result
from sllmd.cluster.catalogue.table import Table

CLIENTS_MAX = 4_096
"""Clients whose commands are remembered; the one unheard for longest is forgotten first."""
REMOVED_MAX = 4_096
"""Removed nodes whose certificates are refused; the one removed first is forgotten first."""
CLAIMS_MAX = 1_024
"""Remembered per token: a node that asks again after so many others uses the token once more."""
OPEN_MAX = 1_024
"""Answers remembered per client: as many commands as one client may have under way."""


@dataclass(frozen=True, slots=True)
class Client:
    """What is remembered of a client's commands, so that a repeated one is answered and not repeated."""

    label: str
    last_used: int
    answered_below: int
    results: dict[int, Result]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """``revision`` counts the commands applied; every record names the one that changed it last."""

    revision: int = 0
    epoch: int = 0
    nodes: Table[Node] = field(default_factory=Table)
    deployments: Table[Deployment] = field(default_factory=Table)
    names: Table[str] = field(default_factory=Table)
    """Every name and alias, to the deployment that has it."""
    replicas: Table[Replica] = field(default_factory=Table)
    used: Table[int] = field(default_factory=Table)
    """Bytes that replica intents take, by ``node/device``; derived, never in a snapshot."""
    api_keys: Table[ApiKey] = field(default_factory=Table)
    tokens: Table[JoinToken] = field(default_factory=Table)
    settings: Table[Setting] = field(default_factory=Table)
    removed: Table[RemovedNode] = field(default_factory=Table)
    clients: Table[Client] = field(default_factory=Table)


EMPTY = Catalogue()


def place(node: str, device: str) -> str:
    """The key of ``Catalogue.used``."""
    return f"{node}/{device}"

"""Who keeps this cluster's agreement: its own raft, or an etcd; and which nodes keep the CA because of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from sllmd.cluster.control import ControlStore
from sllmd.cluster.etcd.control import EtcdControl
from sllmd.cluster.home import Belonging
from sllmd.cluster.member import RaftControl
from sllmd.cluster.raft.entries import Membership
from sllmd.cluster.settings import ClusterSettings
from sllmd.core.ids import NodeId
from sllmd.wire.rpc.connection import Connection
from sllmd.wire.rpc.methods import Methods

KEEPERS = 5
"""Nodes that keep the CA where an etcd agrees: as many as could vote if the nodes agreed themselves."""


async def start_control(
    settings: ClusterSettings,
    belonging: Belonging,
    *,
    directory: Path,
    memory: Path,
    methods: Methods,
    connect: Callable[[NodeId], Awaitable[Connection]],
    alive: Callable[[], Collection[NodeId]],
) -> ControlStore:
    """Take part in agreement. ``directory``: raft's; ``memory``: the file that keeps what an etcd told.

    Raises JournalError, and ConfigError when an etcd cannot be used.
    """
    if settings.store == "etcd":
        return await EtcdControl.start(
            node=belonging.node, cluster_id=belonging.cluster_id, settings=settings.etcd, memory=memory
        )
    return await RaftControl.start(
        node=belonging.node,
        directory=directory,
        methods=methods,
        connect=connect,
        alive=alive,
        founding=Membership((belonging.node,)) if belonging.founding else None,
        settings=settings.raft,
        journal_settings=settings.journal,
        voter_settings=settings.voters,
        control_settings=settings.control,
    )


def agreement_role(control: ControlStore, node: NodeId) -> str | None:
    """``voter`` or ``standby`` where the nodes agree themselves; None: it follows, or an etcd agrees."""
    if not isinstance(control, RaftControl):
        return None
    if node in control.membership.voters:
        return "voter"
    return "standby" if node in control.membership.learners else None


def keeps_authority(control: ControlStore, node: NodeId) -> bool:
    """Whether a node is to have the CA's key: who keeps the log, or else the members admitted first.

    Few have it, because whoever does can let anybody in. A node that no longer keeps the log deletes it, once
    another that does has said that it has it (``duties``); so does one that hears of its own removal. That
    keeps a key from lying about, and does not take it from who copied it: the CA itself is never replaced,
    which would mean to visit every node. If a machine that had the key falls into wrong hands, found the
    cluster anew.
    """
    if isinstance(control, RaftControl):
        return node in control.membership.everyone
    nodes = sorted(control.view().catalogue.nodes.values(), key=lambda one: one.revision)
    return node in {one.node for one in nodes[:KEEPERS]}


async def retire(control: ControlStore) -> bool:
    """Hand over whatever this node has of agreement; whether the others can do without it."""
    if isinstance(control, RaftControl):
        return await control.retire()
    await control.hand_over()
    return True

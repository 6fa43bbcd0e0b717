"""A machine as operators and policies see it: values, taken at one moment. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sllmd.cluster.raft.entries import Membership
from sllmd.cluster.raft.events import Role
from sllmd.cluster.raft.progress import ProgressState
from sllmd.core.ids import NodeId


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """Another member, as its leader sees it."""

    node: NodeId
    state: ProgressState
    match_index: int
    lag_entries: int
    """How far its log is behind the leader's; a learner with a small one may become a voter."""
    heard: bool
    """Since the last check of the quorum."""


@dataclass(frozen=True, slots=True)
class RaftStatus:
    """One node. ``peers`` is empty unless it leads."""

    node: NodeId
    role: Role
    epoch: int
    leader: NodeId | None
    membership: Membership
    membership_committed: bool
    commit_index: int
    applied_index: int
    durable_index: int
    last_index: int
    peers: tuple[PeerStatus, ...]

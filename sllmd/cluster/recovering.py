"""One node goes on when most voters are lost for good: its log, its CA, and who is no member any more.

Offline: the daemon does not run. What is done to raft's journal is told in ``member.recovery``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from sllmd.cluster.home import Home
from sllmd.cluster.journal import JournalSettings
from sllmd.cluster.member.recovery import recover
from sllmd.core.errors import ConfigError
from sllmd.core.ids import NodeId
from sllmd.wire.identity import make_identity, make_request, new_authority, new_key


@dataclass(frozen=True, slots=True)
class Recovered:
    """What was done."""

    node: NodeId
    name: str
    cluster_id: str
    lost: tuple[NodeId, ...]
    """Removed when this node starts; to come back they join anew."""
    new_authority: bool
    """The CA was lost with the others: every other node has to join anew."""


def go_on_alone(home: Home, settings: JournalSettings) -> Recovered:
    """Make this node a cluster of one with all that it knows; it cannot be undone.

    Raises ConfigError where there is no cluster, JournalError as ``member.recovery.recover``.
    """
    belonging = home.belonging()
    if belonging is None or belonging.joining:
        raise ConfigError(f"{home.directory} is of no cluster", hint="there is nothing to recover")
    recovery = recover(home.journal_directory, belonging.node, settings)
    lost = tuple(node for node in recovery.former.everyone if node != belonging.node)
    home.save_belonging(replace(belonging, lost=lost))
    identity = home.identity()
    new = identity is not None and home.authority() is None
    if new:
        now_seconds, key = time.time(), new_key()
        authority = new_authority(belonging.cluster_id, now_seconds=now_seconds)
        request = make_request(belonging.node, key)
        signed = authority.sign(request, belonging.node, now_seconds=now_seconds)
        home.save_identity(make_identity(key, signed, authority.certificate_pem))
        home.save_authority(authority)
    return Recovered(belonging.node, belonging.name, belonging.cluster_id, lost, new)

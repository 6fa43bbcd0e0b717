"""The way out when a majority is lost for good: one node that has the log goes on alone.

What its journal holds is taken as agreed, committed or not; what only the lost ones had is gone. Every epoch
of the cluster that goes on is above every epoch that the lost ones may have had: their orders stay refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sllmd.cluster.journal import DirectoryFiles, JournalSettings, Wal
from sllmd.cluster.member.disk import is_blank, last_membership
from sllmd.cluster.raft.entries import INCARNATION_BITS, HardState, Membership, forced, incarnation
from sllmd.cluster.raft.events import Persist
from sllmd.core.errors import JournalError
from sllmd.core.ids import NodeId


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was done."""

    former: Membership
    epoch: int
    """Epochs are higher than this from now on."""
    last_index: int
    """The newest entry that is taken as agreed."""


def recover(directory: Path, node: NodeId, settings: JournalSettings | None = None) -> Recovery:
    """Rewrite the journal of a node that does not run, so that it goes on alone; it cannot be undone.

    ``directory`` is the one given to ``RaftControl.start``. Never do this to two nodes of one cluster, and
    have the lost ones join anew with empty directories. Raises JournalError where there is no log, where the
    node runs, or where the journal is corrupt.
    """
    if not directory.is_dir():
        raise _no_log(directory)
    files = DirectoryFiles(directory)
    try:
        wal = Wal(files, settings or JournalSettings())
        restored = wal.recovered.restored
        if is_blank(restored):
            raise _no_log(directory)
        next_one = incarnation(restored.hard_state.term) + 1
        raised = HardState((next_one << INCARNATION_BITS) - 1, None)
        hard_state, entries = forced(replace(restored, hard_state=raised), node)
        wal.append([Persist(0, hard_state, None, entries, ())])
        return Recovery(last_membership(restored), hard_state.term, entries[-1].index - 1)
    finally:
        files.close()


def _no_log(directory: Path) -> JournalError:
    return JournalError(
        f"{directory} holds no log: this node only followed the others",
        hint="run it on a node that was a voter or a standby; `sllmd members` told which",
    )

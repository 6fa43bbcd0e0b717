"""The catalogue: what the agreed commands make of the cluster's state.

Owns: nodes and who was one, deployments and their aliases, replica intents with revisions, API keys, join
tokens, settings, the leader's epoch, and the memory of clients that makes a repeated command harmless. Knows
nothing of raft, of time (wall time only as a proposed value), of what is measured rather than agreed.

Invariants: ``apply`` is a function: the same commands in the same order give the same state, results and
snapshot bytes on every node; a command that is refused changes nothing but its client's memory.

Start at ``commands.py`` (what may be asked), then ``machine.py`` (``apply``), then ``records.py``.
"""

from sllmd.cluster.catalogue.commands import Command, pack_command, unpack_command
from sllmd.cluster.catalogue.machine import apply, apply_bytes
from sllmd.cluster.catalogue.snapshot import restore, snapshot
from sllmd.cluster.catalogue.state import EMPTY, Catalogue

__all__ = [
    "EMPTY",
    "Catalogue",
    "Command",
    "apply",
    "apply_bytes",
    "pack_command",
    "restore",
    "snapshot",
    "unpack_command",
]

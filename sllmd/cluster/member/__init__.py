"""This cluster's own agreement, as the daemon uses it: raft on a real clock, disk and network.

Owns: the loop around raft's machine (``shell``, ``state``), what this node knows (``known``), proposals
until they are answered (``proposing``), whether it keeps the log (``seat``) or follows without one
(``following``, ``feeding``), what others may ask (``answering``), who votes (``voters``, ``stewardship``),
and the way out when a majority is lost for good (``recovery``).

Invariants: a message that promises something leaves only after the sync that makes it true; what a node
shows never goes back; a command that was sent twice is carried out once; a node whose disk failed agrees to
nothing any more, and goes on showing what it knew.

Start at ``control.py``, then ``seat.py``, ``shell.py``, ``proposing.py``.
"""

from sllmd.cluster.member.control import RaftControl
from sllmd.cluster.member.settings import ControlSettings, VoterSettings

__all__ = ["ControlSettings", "RaftControl", "VoterSettings"]

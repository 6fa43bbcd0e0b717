"""Raft: who leads, and in which order things were agreed. A machine without IO, one door.

Owns: the rules of the raft paper and thesis (sections in the text): election with PreVote, vote lease and
CheckQuorum, replication with flow control, the commit rule, membership changes one voter at a time,
learners, linearizable reads, snapshots in parts, leadership transfer. Knows nothing of clocks, chance,
sockets, disks and of what the commands mean.

Invariants: one leader per term; a promise leaves this node only inside the ``Persist`` that makes it true;
nothing is applied that this node could forget; whatever is refused never takes effect; every queue has a
limit. Start at ``events.py`` (what goes in and comes out), then ``machine.py``, then floor by floor
``core``, ``snapshots``, ``replication``, ``reads``, ``handover``, ``changes``, ``election``.
"""

from sllmd.cluster.raft.core import Start
from sllmd.cluster.raft.machine import Raft
from sllmd.cluster.raft.settings import RaftSettings
from sllmd.cluster.raft.status import PeerStatus, RaftStatus

__all__ = ["PeerStatus", "Raft", "RaftSettings", "RaftStatus", "Start"]

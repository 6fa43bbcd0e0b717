"""Gossip: who is a member, who lives, and where to find them. A machine without IO, one door.

Owns: the rules of SWIM (Das et al. 2002) with Lifeguard (Dadgar et al. 2018): probes, direct, through others
and over a stream; suspicion that others' confirmations shorten and the suspect itself refutes; health of
this node's own; dissemination on the back of every packet; exchange of whole tables. Knows nothing of
clocks, chance, sockets, keys, and of what stands in a member's meta.

Invariants: a node's incarnation is raised by the node alone, and a higher one wins over whatever was said
about a lower one, so no clock matters and no order of arrival; nobody is declared dead who was not suspected
first; whoever is held alive keeps its id and address until it dies or leaves; every queue has a limit.
Start at ``events.py`` (what goes in and comes out), then ``machine.py``, then floor by floor ``core``,
``rules``, ``suspecting``, ``spreading``, ``exchanging``, ``probing``.
"""

from sllmd.cluster.gossip.core import Start
from sllmd.cluster.gossip.machine import Gossip
from sllmd.cluster.gossip.meta import Meta, pack_meta, unpack_meta
from sllmd.cluster.gossip.settings import GossipSettings

__all__ = ["Gossip", "GossipSettings", "Meta", "Start", "pack_meta", "unpack_meta"]

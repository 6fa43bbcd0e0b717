"""Who belongs to a cluster of identical daemons, what they agree on, and how.

Owns: ``gossip`` (who is a member and who lives: a machine without IO), ``membership`` (drives it over
``wire``'s sealed datagrams), ``raft`` (who leads and in which order things were agreed: a machine without
IO), ``journal`` (what this node must not forget, on its disk), ``catalogue`` (what the agreed commands make
of the cluster's state), ``control`` (what the daemon sees of all that; ``member`` and ``etcd`` stand behind
it), ``node`` (all of it put together: what founds, joins, comes back and leaves), ``whereabouts`` (who else
is there, and where), ``calls`` (connections to them), ``home`` (a node's own files), ``codec`` (their bytes).
Knows nothing of HTTP towards clients, of engines and checkpoints.

Invariants: nothing is promised to another node before it is durable here; the same commands in the same
order give the same catalogue on every node; a journal is never silently shorter than what was promised;
gossip is a hint of who lives, and no promise is ever built on it.

Start at ``raft/__init__.py``, then ``journal/__init__.py``, then ``catalogue/__init__.py``; for members,
``gossip/__init__.py``, then ``membership.py``.
"""

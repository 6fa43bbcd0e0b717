"""What a cluster of identical daemons agrees on, and how.

Owns: ``raft`` (who leads and in which order things were agreed: a machine without IO), ``journal`` (what
this node must not forget, on its disk), ``catalogue`` (what the agreed commands make of the cluster's
state), ``codec`` (their bytes). Knows nothing of sockets, of HTTP, of engines and checkpoints.

Invariants: nothing is promised to another node before it is durable here; the same commands in the same
order give the same catalogue on every node; a journal is never silently shorter than what was promised.

Start at ``raft/__init__.py``, then ``journal/__init__.py``, then ``catalogue/__init__.py``.
"""

"""Agreement kept by an etcd outside of this cluster, behind the same interface as this cluster's own raft.

Owns: the conversation with etcd's JSON gateway (3.4 or later), how commands, snapshots and the leader's
seat lie in its keys, and what this node does while etcd is away. Knows nothing of what commands mean
(``catalogue`` does) and of gossip.

etcd serves as a total order. Under ``<prefix>/<cluster>/``:

=======================  ================================================================================
``live/command/…``       a batch of commands, written once: sending it again does nothing
``live/leader``          the seat: the leader's id, on the leader's lease
``tip``                  rewritten with every batch: its ``mod_revision`` is the newest batch's
``snapshot/<name>/<n>``  a catalogue in pieces below etcd's limit on requests
``pointer``              which snapshot counts
=======================  ================================================================================

Every node feeds the batches in ``mod_revision``'s order to the catalogue; a proposer learns its results
there. A batch is one key, so that a revision is never half seen and a page of batches may end anywhere. A
position is a revision of etcd.

Invariants: a batch is forgotten only once a snapshot that counts contains it; a pointer, its pieces and the
batches behind it are read at one revision; nobody leads by the local clock when etcd could have given
the seat away; nothing but leadership hangs on a lease: without etcd, ``view`` only grows old.

Start at ``control.py``, then ``log.py`` (reading), ``proposals.py`` and ``sender.py`` (writing),
``election.py``, ``snapshots.py``; ``gateway.py`` is the wire.
"""

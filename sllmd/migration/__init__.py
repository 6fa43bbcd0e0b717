"""How a running generation changes its place: what is true of it, when it moves, and what is tried again.

Owns: the ``ledger`` of a generation (every token once, in order, from one source at a time), the ``mover``
(one planned move, from the target's first sign of life to the switch), and ``failover`` (what a lost source
means). Knows nothing of replicas, nodes, sockets, clocks or tasks. Pure: it imports only ``core`` and the
words of ``engine.protocol``, and time arrives as a value.

Invariants: before the switch the source owns the generation, after it the target: there is no instant when
both or neither do; nothing on this way needs a leader, nor anything of the source; a move that fails costs
its generation nothing.

Start at ``ledger``, then ``mover``.
"""

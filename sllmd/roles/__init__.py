"""The coroutines that carry out decisions; the only room that awaits the others.

Owns: ``router`` (one generation's life), ``dispatch`` (from a generation to a place that runs it: ``place``
is this node, ``relay`` another), ``agent`` (this machine's replicas and the queue before them),
``admission`` (pure: who may start), ``dataplane`` (what makes one system of many nodes: ``reporting`` and
``bookkeeping`` keep the ``table`` of who has what, ``placing`` asks ``choosing``, ``library`` and
``deployments`` say what names stand for, ``files`` and ``chunks`` bring a model from others, ``orders``
obeys the leader), ``operator`` (what a person asks of a node), ``desk`` (what a person asks of the cluster:
``fleet`` sees, ``steering`` changes, ``departure`` leaves, ``following`` follows events and logs, which
``watching`` and ``happenings`` make), ``provision`` (models of the configuration).
Knows nothing of HTTP.
Invariants: every wait has a bound and ends when its request is cancelled; no request waits for a leader; what
crosses nodes is token events, over one hop at most. Start at ``router``, then ``dataplane``.
"""

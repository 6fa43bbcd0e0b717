"""The coroutines that carry out decisions; the only room that awaits the others.

Owns: ``router`` (one generation's life), ``agent`` (this machine's replicas and the queue before them),
``admission`` (pure: who may start), ``operator`` (what a person asks of a node), ``desk`` (what a person asks
of the cluster: ``fleet`` sees, ``steering`` changes, ``departure`` leaves, ``following`` follows events and
logs, which ``watching`` and ``happenings`` make), ``provision`` (models of the configuration).
Knows nothing of HTTP.
Invariants: every wait has a bound and ends when its request is cancelled. Start at ``router``.
"""

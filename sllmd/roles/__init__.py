"""The coroutines that carry out decisions; the only room that awaits the others.

Owns: ``agent`` (this machine's replicas and tiers), ``router`` (one generation's life), ``replica`` (pure:
which replicas start, serve, rest and go). Knows nothing of HTTP.
Invariants: every wait has a bound and ends when its request is cancelled. Start at ``router``.
"""

"""Where a model that is not loaded should be loaded, and what goes to make room for it.

Owns: the picture of the cluster (``view``, kept by ``keeper`` from ``reports``), what it has learned of times
(``learning``), the estimates (``estimate``), and the decisions: ``placement`` with its ``victims``, ``turns``
between those who wait, ``scaling``, ``eviction``, ``prefetch``. Knows nothing of sockets, clocks, processes,
agreement or torch. Pure: it imports only ``core``, and time arrives as a value.

Invariants: the same view and request give the same placement; a decision changes nothing; a generation is
never displaced unless it has somewhere to go; a refusal names the resource that is missing; every decision
carries the candidates that it compared and why each lost.

Start at ``placement.place``.
"""

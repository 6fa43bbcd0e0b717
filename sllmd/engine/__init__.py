"""Tokens out of weights.

Owns: the engine interface, the step loop, the cache, sampling, and the worker processes they run in.
Knows nothing of HTTP, text, stores or tiers: it is handed memory and token ids.
Invariants: state changes only between steps; the daemon side of this room (``protocol``, ``supervisor``,
``fake``) never imports torch. Start at ``protocol``.
"""

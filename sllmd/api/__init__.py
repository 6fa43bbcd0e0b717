"""HTTP in, server-sent events out.

Owns: the OpenAI wire contract, keys, the operator's endpoints under ``/sllmd/v1``.
Knows nothing of devices, tiers or workers: it asks ``roles``.
Invariants: every error has the envelope; nothing is sent after ``[DONE]``; a client that leaves cancels.
Start at ``server``.
"""

"""What an operator sees of a running daemon: metrics (prometheus-client) and logs (structlog).

Owns: metric names, log set-up, feeds: what happened and what was logged lately, for those who follow it
(``feed``, ``tap``), and loops whose crash is logged and that begin anew (``supervising``). Knows nothing of
who reports. Start at ``metrics``.
"""

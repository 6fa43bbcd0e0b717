"""What an operator sees of a running daemon: metrics (prometheus-client) and logs (structlog).

Owns: metric names, log set-up, and feeds: what happened and what was logged lately, for those who follow it
(``feed``, ``tap``). Knows nothing of who reports. Start at ``metrics``.
"""

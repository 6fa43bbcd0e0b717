"""What an operator sees of a running daemon: metrics (prometheus-client) and logs (structlog).

Owns: metric names and log set-up. Knows nothing of who reports. Start at ``metrics``.
"""

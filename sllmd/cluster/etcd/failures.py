"""How a conversation with etcd fails. Pure."""

from __future__ import annotations

from sllmd.core.errors import ControlUnavailable

RETRY_AFTER_SECONDS = 1.0
AWAY_HINT = "is etcd running and reachable, and does it speak http or https as [cluster.etcd] endpoints says?"

NOT_FOUND = 5
RESOURCE_EXHAUSTED = 8
OUT_OF_RANGE = 11
UNAUTHENTICATED = 16
REFUSALS = frozenset({3, NOT_FOUND, 7, RESOURCE_EXHAUSTED, 9, OUT_OF_RANGE, 12, UNAUTHENTICATED})
"""gRPC codes by which etcd says that it did not do it; with any other it may have, or may yet."""

_HINTS = {
    7: "give the user `readwrite` on the prefix: etcdctl role grant-permission --prefix=true",
    12: "sllmd needs etcd 3.4 or later",
    UNAUTHENTICATED: "check [cluster.etcd] username and password_file",
}
_HINTS_BY_WORDS = {
    "database space exceeded": "etcd is full: compact and defragment it, then `etcdctl alarm disarm`",
    "authentication failed": _HINTS[UNAUTHENTICATED],
    "user name is empty": "etcd wants a user: set [cluster.etcd] username and password_file",
    "authentication is not enabled": "etcd knows no users: unset [cluster.etcd] username",
}


class EtcdAway(ControlUnavailable):
    """No endpoint answered. ``in_doubt``: the request was sent, so it may have been carried out."""

    def __init__(self, message: str, *, in_doubt: bool) -> None:
        super().__init__(message, retry_after_seconds=RETRY_AFTER_SECONDS, hint=AWAY_HINT)
        self.in_doubt = in_doubt


class EtcdRefused(ControlUnavailable):
    """etcd answered that it will not: nothing was carried out. ``grpc`` is the status's number."""

    in_doubt = False

    def __init__(self, message: str, grpc: int) -> None:
        hints = (hint for words, hint in _HINTS_BY_WORDS.items() if words in message)
        hint = next(hints, _HINTS.get(grpc))
        super().__init__(f"etcd refused: {message}", retry_after_seconds=RETRY_AFTER_SECONDS, hint=hint)
        self.grpc = grpc

    @property
    def token_expired(self) -> bool:
        """Whether a new login may help."""
        return self.grpc == UNAUTHENTICATED or "auth store is old" in self.message


class NotEtcd(Exception):
    """Something else than an etcd of our cluster is at an endpoint, or it will not talk TLS with us."""

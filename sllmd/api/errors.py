"""From an error to what a client sees: status, envelope, headers. Pure.

One table; the nearest class of an error's ancestry decides. Official SDKs retry 408, 409, 429 and 5xx twice
unless ``x-should-retry`` says otherwise, and wait as ``Retry-After`` says; Python's gives up at once above
120 s. So what cannot get better by itself says ``x-should-retry: false``, and waits are at most 60 s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sllmd.core.errors import (
    BodyTooLarge,
    BusyError,
    CallerError,
    CheckpointError,
    ConfigError,
    Conflict,
    ContextLengthExceeded,
    ControlUnavailable,
    InvalidApiKey,
    LoadError,
    ModelNotFound,
    NodeDraining,
    OutcomeUnknown,
    PeerError,
    RecordNotFound,
    SllmdError,
    StoreError,
    WorkerLost,
)

RETRY_AFTER_SECONDS_MAX = 60


class HttpRefusal(CallerError):
    """Refused for where or how it was asked, not for what: no such route, method, scope, origin."""

    def __init__(
        self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.headers = dict(headers or {})


class _Row(NamedTuple):
    status: int
    kind: str
    param: str | None = None
    headers: Mapping[str, str] = {}


_CALLER = "invalid_request_error"
_SERVER = "server_error"
_NO_RETRY = {"x-should-retry": "false"}

_TABLE: dict[type[SllmdError], _Row] = {
    CallerError: _Row(400, _CALLER),
    ModelNotFound: _Row(404, _CALLER, "model"),
    ContextLengthExceeded: _Row(400, _CALLER),
    RecordNotFound: _Row(404, _CALLER),
    Conflict: _Row(409, _CALLER, None, _NO_RETRY),
    OutcomeUnknown: _Row(504, _SERVER, None, _NO_RETRY),
    BodyTooLarge: _Row(413, _CALLER),
    InvalidApiKey: _Row(401, _CALLER, None, {"WWW-Authenticate": "Bearer"}),
    BusyError: _Row(503, _SERVER, "model"),
    NodeDraining: _Row(503, _SERVER),
    ControlUnavailable: _Row(503, _SERVER),
    PeerError: _Row(503, _SERVER, None, {"Retry-After": "1"}),
    LoadError: _Row(503, _SERVER, "model", _NO_RETRY),
    CheckpointError: _Row(503, _SERVER, "model", _NO_RETRY),
    WorkerLost: _Row(503, _SERVER, "model", {"Retry-After": "1"}),
    StoreError: _Row(500, _SERVER, None, _NO_RETRY),
    ConfigError: _Row(500, _SERVER, None, _NO_RETRY),
    SllmdError: _Row(500, _SERVER),
}


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error as it goes over the wire."""

    status: int
    message: str
    kind: str
    code: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The envelope; all four keys are required by OpenAI's specification."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def reply_to(error: SllmdError) -> ErrorReply:
    """What the client that caused or met ``error`` is told."""
    row = _row(type(error))
    headers = dict(row.headers)
    status, param = row.status, row.param
    if isinstance(error, CallerError):
        param = error.param or param
    if isinstance(error, HttpRefusal):
        status = error.status
        headers.update(error.headers)
    if isinstance(error, BusyError):
        headers["Retry-After"] = str(_retry_after_seconds(error))
    return ErrorReply(status, str(error), row.kind, error.code, param, headers)


def reply_of(code: str | None, message: str) -> ErrorReply:
    """What an error of this code was told as, when only its words are left."""
    kind = next((kind for kind in _descendants(SllmdError) if kind.code == code), SllmdError)
    row = _row(kind)
    headers = dict(row.headers)
    if issubclass(kind, BusyError):
        headers["Retry-After"] = "1"
    return ErrorReply(row.status, message, row.kind, kind.code, row.param, headers)


def internal_reply(request_id: str) -> ErrorReply:
    """What a client is told of a defect of ours: where to look, nothing of our insides."""
    message = f"Something went wrong inside sllmd; its log tells more under request id {request_id}."
    return ErrorReply(500, message, _SERVER, SllmdError.code)


def _row(kind: type[SllmdError]) -> _Row:
    return next(_TABLE[ancestor] for ancestor in kind.__mro__ if ancestor in _TABLE)


def _descendants(kind: type[SllmdError]) -> Iterator[type[SllmdError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _descendants(child)


def _retry_after_seconds(error: BusyError) -> int:
    if not math.isfinite(error.retry_after_seconds):
        return RETRY_AFTER_SECONDS_MAX
    return min(max(math.ceil(error.retry_after_seconds), 1), RETRY_AFTER_SECONDS_MAX)

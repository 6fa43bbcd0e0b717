from http import HTTPStatus

import pytest

from sllmd.api.errors import HttpRefusal, internal_reply, reply_to
from sllmd.core import errors as e

CASES = [
    (e.InvalidRequest("x", param="n"), 400, "invalid_request_error", "invalid_value", "n", {}),
    (
        e.InvalidRequest("x", param="n", code="invalid_type"),
        400,
        "invalid_request_error",
        "invalid_type",
        "n",
        {},
    ),
    (
        e.UnsupportedParameter("x", param="tools"),
        400,
        "invalid_request_error",
        "unsupported_parameter",
        "tools",
        {},
    ),
    (e.ModelNotFound("x"), 404, "invalid_request_error", "model_not_found", "model", {}),
    (
        *(e.ContextLengthExceeded("x", param="messages"), 400, "invalid_request_error"),
        *("context_length_exceeded", "messages", {}),
    ),
    (e.BodyTooLarge("x"), 413, "invalid_request_error", "body_too_large", None, {}),
    (
        *(e.InvalidApiKey("x"), 401, "invalid_request_error", "invalid_api_key", None),
        {"WWW-Authenticate": "Bearer"},
    ),
    (
        e.QueueFull("x", retry_after_seconds=2.1),
        503,
        "server_error",
        "queue_full",
        "model",
        {"Retry-After": "3"},
    ),
    (
        *(e.StartupTimeout("x", retry_after_seconds=999), 503, "server_error", "startup_timeout", "model"),
        {"Retry-After": "60"},
    ),
    (
        e.NodeDraining("x", retry_after_seconds=0),
        503,
        "server_error",
        "node_draining",
        None,
        {"Retry-After": "1"},
    ),
    (
        *(e.QueueFull("x", retry_after_seconds=float("inf")), 503, "server_error", "queue_full", "model"),
        {"Retry-After": "60"},
    ),
    (
        *(e.InsufficientCapacity("x"), 503, "server_error", "insufficient_capacity", "model"),
        {"x-should-retry": "false"},
    ),
    (e.ModelLoadFailed("x"), 503, "server_error", "model_load_failed", "model", {"x-should-retry": "false"}),
    (
        *(e.ChecksumMismatch(file="f", chunk_index=1), 503, "server_error", "model_load_failed", "model"),
        {"x-should-retry": "false"},
    ),
    (e.WorkerLost("x"), 503, "server_error", "worker_lost", "model", {"Retry-After": "1"}),
    (e.RecordNotFound("x"), 404, "invalid_request_error", "not_found", None, {}),
    (e.Conflict("x"), 409, "invalid_request_error", "conflict", None, {"x-should-retry": "false"}),
    (e.OutcomeUnknown("x"), 504, "server_error", "outcome_unknown", None, {"x-should-retry": "false"}),
    (e.StoreError("x"), 500, "server_error", "store_error", None, {"x-should-retry": "false"}),
    (e.SllmdError("x"), 500, "server_error", "internal_error", None, {}),
    (
        *(
            HttpRefusal(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", "x", headers={"Allow": "GET"}),
            405,
        ),
        *("invalid_request_error", "method_not_allowed", None, {"Allow": "GET"}),
    ),
]


@pytest.mark.parametrize(("error", "status", "kind", "code", "param", "headers"), CASES)
def test_table(error, status, kind, code, param, headers):
    reply = reply_to(error)
    assert reply.status == status
    assert reply.headers == headers
    assert reply.body() == {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def every_class(root=e.SllmdError):
    yield root
    for child in root.__subclasses__():
        yield from every_class(child)


def test_no_error_of_a_caller_is_retried_by_official_clients():
    for kind in every_class():
        error = kind.__new__(kind)
        error.message, error.hint, error.param, error.retry_after_seconds = "x", None, None, 1.0
        error.status, error.headers = HTTPStatus.NOT_FOUND, {}
        reply = reply_to(error)
        assert reply.status not in (408, 422)
        assert reply.status != 409 or reply.headers["x-should-retry"] == "false"


def test_defects_tell_the_request_id_and_nothing_else():
    reply = internal_reply("req_1")
    assert reply.status == 500
    assert "req_1" in reply.message
    assert reply.code == "internal_error"

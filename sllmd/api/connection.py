"""What comes over a connection and is no HTTP request gets an answer like everything else."""

from __future__ import annotations

from http import HTTPStatus
from uuid import uuid4

import structlog
from aiohttp import web

import sllmd
from sllmd.api.chunks import compact
from sllmd.api.errors import HttpRefusal, internal_reply, reply_to

_log = structlog.get_logger(__name__)


class Connection(web.RequestHandler):
    """aiohttp's, but its own errors have the envelope, and what a client got wrong leaves no stack trace."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to a request that no handler saw, or that broke around its handler."""
        if isinstance(exc, ConnectionError):
            raise exc  # the client left before its answer: nobody's fault, and nobody to tell
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            reply = internal_reply(f"req_{uuid4().hex}")
            _log.error("request failed", reply=reply.message, exc_info=exc)
        else:
            cause = (message or HTTPStatus(status).phrase).splitlines()[0].rstrip(": ")
            reply = reply_to(HttpRefusal(status, "invalid_http", f"This is no valid HTTP request: {cause}."))
            _log.debug("no valid HTTP request", remote=request.remote, cause=cause)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is already under way")
        response = web.Response(
            status=reply.status,
            text=compact(reply.body()),
            content_type="application/json",
            headers={"Server": f"sllmd/{sllmd.__version__}"},
        )
        response.force_close()
        return response

"""An HTTP server that serves ranges of a directory and misbehaves as it is told."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


@dataclass
class Answer:
    """What goes over the line: change it to misbehave."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent_bytes: int | None = None
    """Send only so many, then ``afterwards``."""
    afterwards: str = "close"
    """``close`` or ``stall``."""


@dataclass
class Request:
    number: int
    """From 0, over all connections."""
    path: str
    headers: dict[str, str]


Misbehave = Callable[[Request, Answer], Answer]


@dataclass
class RangeServer:
    directory: Path
    misbehave: Misbehave = lambda _, answer: answer
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, headers: dict[str, str]) -> Answer:
        with self.lock:
            request = Request(len(self.requests), path, headers)
            self.requests.append(request)
        content = (self.directory / urlsplit(path).path.lstrip("/")).read_bytes()
        if "Range" not in headers:
            return Answer(200, {"Content-Length": str(len(content)), "ETag": '"v1"'}, content)
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", headers["Range"]).groups())
        body = content[first : last + 1]
        right = Answer(
            206,
            {
                "Content-Range": f"bytes {first}-{first + len(body) - 1}/{len(content)}",
                "Content-Length": str(len(body)),
                "ETag": '"v1"',
            },
            body,
        )
        return self.misbehave(request, right)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: RangeServer

    def do_GET(self) -> None:
        answer = self.owner.answer(self.path, dict(self.headers))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body[: answer.sent_bytes])
        self.wfile.flush()
        if answer.sent_bytes is not None:
            if answer.afterwards == "stall":
                self.owner.released.wait()
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Silence."""


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are what the tests are about."""


@contextmanager
def range_server(directory: Path) -> Iterator[RangeServer]:
    """Runs one on a free port; it is gone afterwards."""
    owner = RangeServer(directory)
    handler = type("Handler", (_Handler,), {"owner": owner})
    with _Quiet(("127.0.0.1", 0), handler) as server:
        owner.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield owner
        finally:
            owner.released.set()
            server.shutdown()
            thread.join()

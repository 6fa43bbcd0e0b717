"""A web server for a directory, with Range requests, that can be told to misbehave."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Manners:
    """How the server behaves; each fault concerns the file named."""

    no_ranges: bool = False
    status: dict[str, int] = field(default_factory=dict)
    wrong_total: str = ""
    cuts_off: str = ""
    short: str = ""
    changes: str = ""
    silent: str = ""
    requests: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    wants: str = ""
    """The Authorization without which it answers 401."""
    told: set[str] = field(default_factory=set)
    """Every Authorization it was sent, "" for none."""
    storage: str = ""
    """Where it sends those who ask for weights."""
    release: threading.Event = field(default_factory=threading.Event)


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def __init__(self, root: Path, manners: Manners) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.manners = manners

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up on a misbehaving server are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        name = unquote(asked.path).removeprefix("/models/m/")
        manners = self.server.manners
        manners.requests.append(name)
        manners.queries.append(asked.query)
        manners.told.add(self.headers.get("Authorization", ""))
        if manners.wants and manners.wants != self.headers.get("Authorization"):
            self.send_error(401)
            return
        if manners.storage and name.endswith(".safetensors"):
            self.send_response(302)
            self.send_header("Location", f"{manners.storage}/{name}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = self.server.root / name
        if name in manners.status or not path.is_file():
            self.send_error(manners.status.get(name, 404))
            return
        if name == manners.silent:
            manners.release.wait(60)
            return
        self._answer(name, path.read_bytes(), manners)

    def _answer(self, name: str, content: bytes, manners: Manners) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        version = len(manners.requests) if name == manners.changes else 1
        if wanted and not manners.no_ranges:
            begin, end = int(wanted[1]), min(int(wanted[2]) + 1, len(content))
            total = len(content) + (1000 if name == manners.wrong_total else 0)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{total}")
            content = content[begin:end]
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{version}"')
        if name == manners.short:
            content = content[:-1]
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name == manners.cuts_off else content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def serve(root: Path, manners: Manners) -> Iterator[str]:
    """Serve ``root``; the URL of its only model."""
    server = _Server(root, manners)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/models/m"
    finally:
        manners.release.set()
        server.shutdown()
        server.server_close()
        thread.join()

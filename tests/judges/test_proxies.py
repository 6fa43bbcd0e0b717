"""Streams behind the proxies that people put in front: nginx as it comes, nginx set up well, haproxy."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.live import LiveDaemon, program
from tests.waiting import until

pytestmark = pytest.mark.slow
NGINX = """
daemon off; master_process off; pid {home}/pid; error_log {home}/log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://{upstream}; {options} }}
  }}
}}
"""
KEEP_ALIVE = 'proxy_http_version 1.1; proxy_set_header Connection ""; gzip on; gzip_types *;'
HAPROXY = """
global
  maxconn 64
defaults
  mode http
  option httplog
  timeout connect 60s
  timeout client 60s
  timeout server 60s
listen front
  bind 127.0.0.1:{port}
  server only {upstream}
"""


def nginx(home: Path, options: str) -> Callable[[int, str], list[str]]:
    """Speaks HTTP/1.0 to what is behind it, and buffers answers, unless it is told otherwise."""

    def command(port: int, upstream: str) -> list[str]:
        path = home / "nginx.conf"
        path.write_text(NGINX.format(home=home, port=port, upstream=upstream, options=options))
        return [program("nginx"), "-p", str(home), "-e", str(home / "log"), "-c", str(path)]

    return command


def haproxy(home: Path) -> Callable[[int, str], list[str]]:
    def command(port: int, upstream: str) -> list[str]:
        path = home / "haproxy.cfg"
        path.write_text(HAPROXY.format(port=port, upstream=upstream))
        return [program("haproxy"), "-db", "-f", str(path)]

    return command


PROXIES = {
    "nginx as it comes": lambda home: nginx(home, ""),
    "nginx with keep-alive and gzip": lambda home: nginx(home, KEEP_ALIVE),
    "haproxy": haproxy,
}


@pytest.fixture(params=PROXIES)
def through(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[LiveDaemon], object]:
    """``with through(daemon) as url``: a proxy in front of it."""
    return lambda daemon: _proxy(PROXIES[request.param](tmp_path), daemon)


@contextmanager
def _proxy(command: Callable[[int, str], list[str]], daemon: LiveDaemon) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        command(port, urlsplit(daemon.url).netloc), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        until(lambda: _listens(port, process), "the proxy listens")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=60)


def _listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, process.communicate()[1].decode()
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_the_first_token_arrives_before_the_second_is_made(acting: LiveDaemon, through: Callable) -> None:
    with through(acting) as url:
        with acting.streaming("endless", url=url) as stream:
            assert next(stream)["choices"][0]["text"]
            assert acting.requests()[0]["completion_tokens"] == 1
        until(lambda: not acting.status()["requests_running"], "leaving reaches the daemon")
    assert acting.requests()[0]["state"] == "cancelled"


def test_chunk_by_chunk(acting: LiveDaemon, through: Callable) -> None:
    """At every event that arrives the daemon has made at most a few tokens more than were seen."""
    with through(acting) as url, acting.streaming("steady", url=url, max_tokens=60) as stream:
        ahead = []
        for seen, _ in enumerate(stream, start=1):
            ahead.append(acting.requests()[0]["completion_tokens"] - seen)
    assert len(ahead) == 60
    # Tokens are 50 ms apart; what was held back would show as the whole answer at the first event.
    assert ahead[0] < 40, ahead


def test_the_real_engines_stream_arrives_whole(real: LiveDaemon, through: Callable) -> None:
    fields = {"max_tokens": 300, "seed": 5, "prompt": "é🙂"}
    with through(real) as url:
        with real.streaming("tiny", url=url, **fields) as stream:
            said = "".join(event["choices"][0]["text"] for event in stream)
        whole = real.ask("/v1/completions", {"model": "tiny", **fields}, url=url).body
    assert said == whole["choices"][0]["text"]


def test_refusals_pass_as_they_are(acting: LiveDaemon, through: Callable) -> None:
    with through(acting) as url:
        refused = acting.ask("/v1/completions", {"model": "unbuildable", "prompt": "x"}, url=url)
    assert (refused.status, refused.error["code"]) == (503, "model_load_failed")
    assert refused.headers["x-should-retry"] == "false"

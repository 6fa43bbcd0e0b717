"""``[api]``: where and how the API is served, and what one client may cost. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ByteSize, Field

from sllmd.core.frozen import Frozen
from sllmd.core.units import FiniteSeconds, PositiveSeconds, Seconds

PORT_MAX = 65535


class ApiSettings(Frozen):
    """Addresses, keys and limits. Seconds unless the name says otherwise."""

    listen: tuple[str, ...] = ("127.0.0.1:8343",)
    """``host:port`` of every TCP address; port 0: the kernel chooses."""
    next_free_port: bool = False
    """Take the next free port where one of ``listen`` is in use: several daemons on one machine."""
    uds: Path | None = None
    """Unix socket that the command line speaks to; who may open it may do everything, no key needed."""
    keys_file: Path = Path("/etc/sllmd/keys.toml")
    """API keys; read again whenever it changes."""
    require_key: Literal["auto"] | bool = "auto"
    """``auto``: on every TCP address, loopback too, as soon as any key exists or other machines can reach one
    of them; true: always; false: never. The Unix socket never asks: its file says who may open it."""
    metrics_require_key: bool = False
    """Whether ``/metrics`` needs a key where the API does."""
    cors_origins: tuple[str, ...] = ()
    """Web pages that may call the API from a browser; ``*`` for all. None by default: a page that somebody
    visits must not use the models of their machine."""
    hosts: tuple[str, ...] = ()
    """Names in URLs that reach the API without a key, besides loopback ones and IP addresses; ``*`` for all.
    Any name would let a page that somebody visits in, by pointing its own name at 127.0.0.1. For a proxy
    that passes the name on."""
    body_max_bytes: ByteSize = ByteSize(32 * 1024 * 1024)
    """Longest request body; a long prompt as token ids takes some 8 bytes a token."""
    body_timeout: PositiveSeconds = 30.0
    """How long a client may take to send its body."""
    idle_timeout: PositiveSeconds = 75.0
    """How long a connection may take to send a request's headers, or rest between requests. Above the 60 s
    after which usual proxies close their side, so that they do not meet a closed connection."""
    stalled_client_timeout: PositiveSeconds = 30.0
    """How long a client may leave its stream unread before it counts as gone."""
    shutdown_timeout: FiniteSeconds = 5.0
    """How long open connections may finish when the API closes, after the node has drained."""
    backlog: int = Field(default=1024, ge=1)
    """Connections that the kernel holds before they are accepted."""
    json_depth_max: int = Field(default=64, ge=4)
    """Deepest nesting in a body; deeper ones only serve to exhaust a parser."""
    json_elements_max: int = Field(default=512 * 1024, ge=1)
    """Most values in a body: all requests wait while it is read. A prompt as token ids has one per token."""
    choices_max: int = Field(default=128, ge=1)
    """Most choices of one request: prompts times ``n``."""
    stop_characters_max: int = Field(default=1024, ge=1)
    """Longest stop string."""
    default_max_tokens: int = Field(default=16, ge=1)
    """``max_tokens`` of a completion that names none, as in OpenAI's specification."""
    hold_headers: Seconds = 10.0
    """How long a stream's status line waits for the first token: until then a failure is a real status."""
    sse_keepalive: FiniteSeconds = 15.0
    """Silence after which a stream gets a comment line; 0: never, for clients that choke on comments."""
    strict_params: bool = False
    """Refuse unknown fields instead of ignoring them and naming them in X-Sllmd-Ignored-Params."""
    access_log: bool = True
    """Log one line per request."""
    openapi: bool = True
    """Serve ``/openapi.json``."""

"""Settings of this room. Pure."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sllmd.core.frozen import Frozen


class LogSettings(Frozen):
    """``[log]``: what the daemon says, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least serious event that is still written."""
    format: Literal["auto", "console", "json"] = "auto"
    """``auto``: for a person on a terminal, JSON lines elsewhere."""
    redact_prompts: bool = True
    """Never write what people asked and what models answered. Off only to debug one's own requests."""
    kept_lines: int = Field(default=2_000, ge=1, le=100_000)
    """Newest lines that `sllmd monitor` can still show; some 500 bytes each."""
    kept_events: int = Field(default=1_000, ge=1, le=100_000)
    """Newest events that `sllmd events` can still show; some 300 bytes each."""

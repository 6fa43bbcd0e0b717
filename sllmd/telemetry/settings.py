"""Settings of this room. Pure."""

from __future__ import annotations

from typing import Literal

from sllmd.core.frozen import Frozen


class LogSettings(Frozen):
    """``[log]``: what the daemon says, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least serious event that is still written."""
    format: Literal["auto", "console", "json"] = "auto"
    """``auto``: for a person on a terminal, JSON lines elsewhere."""
    redact_prompts: bool = True
    """Never write what people asked and what models answered. Off only to debug one's own requests."""

"""Settings of this room. Pure."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class LogSettings(BaseModel):
    """``[log]``: what the daemon says, on standard error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least serious event that is still written."""
    format: Literal["auto", "console", "json"] = "auto"
    """``auto``: for a person on a terminal, JSON lines elsewhere."""
    redact_prompts: bool = True
    """Never write what people asked and what models answered. Off only to debug one's own requests."""

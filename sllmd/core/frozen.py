"""What settings and manifests are made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Data that is checked when it is read and never changes; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

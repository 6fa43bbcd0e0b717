"""Limits of the store that a user may have a reason to change."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sllmd.core.frozen import Frozen
from sllmd.core.units import PositiveSeconds
from sllmd.store.manifest import ALIGNMENT_BYTES, CHUNK_BYTES


class ImportSettings(Frozen):
    """How a model is imported."""

    chunk_bytes: int = Field(default=CHUNK_BYTES, ge=ALIGNMENT_BYTES, multiple_of=ALIGNMENT_BYTES)
    """Unit of checksums and of reading later; small ones only serve tests."""
    gguf_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """What quantised weights are unpacked to; bfloat16 has the range of what they were made from."""
    http_timeout_seconds: PositiveSeconds = 30.0
    """Longest silence of a remote source while its headers and small files are read."""

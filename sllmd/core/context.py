"""How long a context a model has, said once for the daemon and its workers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONTEXT_FIELDS = (
    "max_position_embeddings",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "n_positions",
    "n_ctx",
)
"""Where the families' config.json says it."""
ROPE_FIELDS = ("rope_parameters", "rope_scaling", "original_max_position_embeddings")
"""What else decides on it."""
_UNSTATED_TOKENS = 2048
"""For models that need no limit (ALiBi) and state none."""


def context_tokens(config: Mapping[str, Any]) -> int:
    """The longest prompt and completion that a model with this config.json was made for."""
    stated = (config.get(field) for field in CONTEXT_FIELDS)
    tokens = next((tokens for tokens in stated if isinstance(tokens, int) and tokens > 0), _UNSTATED_TOKENS)
    return min(tokens, _steady_tokens(config) or tokens)


def _steady_tokens(config: Mapping[str, Any]) -> int | None:
    """Where LongRoPE changes to other frequencies, which would invalidate all that is cached (Phi-3)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) not in ("longrope", "su"):
        return None
    return rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")

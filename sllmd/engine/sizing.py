"""How long a generation may get and how much of the cache's memory a model is given."""

from __future__ import annotations

from typing import Any

import torch

from sllmd.core.context import CONTEXT_FIELDS, ROPE_FIELDS
from sllmd.core.context import context_tokens as model_context_tokens
from sllmd.engine.protocol import EngineOptions
from sllmd.telemetry.memory import available_memory_bytes


def context_tokens(config: Any, options: EngineOptions) -> int:
    """Longest prompt + completion: what the model says, or less if the options do."""
    fields = (*CONTEXT_FIELDS, *ROPE_FIELDS)
    model_says = model_context_tokens({field: getattr(config, field, None) for field in fields})
    return min(model_says, options.context_tokens_max or model_says)


def default_cache_tokens(model: Any, context: int, batch_max: int) -> int:
    """Room for ``batch_max`` full contexts, as far as a quarter of the memory that is free now goes."""
    config = model.config.get_text_config()
    parameter = next(model.parameters())
    token_bytes = config.num_hidden_layers * layer_width(config) * parameter.element_size()
    affordable = free_bytes(parameter.device) // 4 // token_bytes
    return int(max(min(context, 512), min(batch_max * context, affordable)))


def layer_width(config: Any) -> int:
    """Numbers that one layer caches per token: keys and values of all heads, or what they come from."""
    if getattr(config, "kv_lora_rank", None):
        return int(config.kv_lora_rank + config.qk_rope_head_dim)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * heads * width)


def free_bytes(device: torch.device) -> int:
    """Of the device's memory, or of this machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory_bytes()

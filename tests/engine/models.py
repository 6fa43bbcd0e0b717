"""Tiny random models of many architectures, and checkpoints of them in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from sllmd.core.ids import Digest
from sllmd.engine.protocol import EngineOptions
from sllmd.engine.transformer import TransformerEngine, build_engine
from sllmd.engine.weights import TORCH_DTYPES, Weights
from sllmd.store.manifest import ALIGNMENT_BYTES, DataFile, Manifest, Partition, Source, Tensor

VOCABULARY = 128

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GQA = {**_COMMON, "num_key_value_heads": 2}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": _GQA,
    "MistralForCausalLM": {**_GQA, "sliding_window": 8},
    "Qwen2ForCausalLM": {**_GQA, "tie_word_embeddings": True},
    "Qwen3ForCausalLM": {**_GQA, "head_dim": 24},
    "Gemma2ForCausalLM": {**_GQA, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "Gemma3ForCausalLM": {
        **_GQA,
        "head_dim": 16,
        "sliding_window": 8,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "GPTNeoXForCausalLM": _COMMON,
    "OPTForCausalLM": {**_COMMON, "ffn_dim": 96, "word_embed_proj_dim": 64},
    "MixtralForCausalLM": {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2MoeForCausalLM": {
        **_GQA,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 48,
        "decoder_sparse_step": 1,
    },
    "BloomForCausalLM": {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "n_layer": 3,
        "n_head": 4,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "DeepseekV3ForCausalLM": {
        **_COMMON,
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    "FalconForCausalLM": {**_COMMON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "GptOssForCausalLM": {
        **_GQA,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
    },
    "OlmoeForCausalLM": {**_GQA, "num_experts": 4, "num_experts_per_tok": 2},
}

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass
class InMemory:
    """A checkpoint: its manifest and one buffer per partition."""

    manifest: Manifest
    buffers: list[bytearray]
    model: Any
    """The reference, with the same weights."""

    def engine(self, **options: Any) -> TransformerEngine:
        chosen = EngineOptions(**{"threads": 1, "batch_max": 8, **options})
        engine = build_engine(self.manifest, Weights.over_memory(self.manifest, self.buffers), chosen)
        assert isinstance(engine, TransformerEngine)
        return engine


def random_model(architecture: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**{**ARCHITECTURES[architecture], **changes})
    torch.manual_seed(seed)
    model = model_class._from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Large enough that attention and experts decide the output, biases and norms included.
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(offset + torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.12))
    model.generation_config.eos_token_id = None
    return model


def checkpoint(model: Any, partition_count: int = 1) -> InMemory:
    """Lay ``model`` out as the store would: names on disk, aligned, tied tensors once, layers spread."""
    from transformers.core_model_loading import revert_weight_conversion

    stored = revert_weight_conversion(model, model.state_dict())
    ties: dict[str, str] = {}
    by_address: dict[tuple[int, torch.Size], str] = {}
    offsets = [0] * partition_count
    tensors = []
    layers = model.config.get_text_config().num_hidden_layers
    for name, tensor in stored.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key in by_address:
            ties[name] = by_address[key]
            continue
        by_address[key] = name
        partition = _layer(name, layers) * partition_count // (layers + 1)
        size = tensor.numel() * tensor.element_size()
        tensors.append(
            Tensor(
                name=name,
                dtype=_NAMES[tensor.dtype],
                shape=tuple(tensor.shape),
                partition=partition,
                offset_bytes=offsets[partition],
                size_bytes=size,
            )
        )
        offsets[partition] += -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    buffers = [bytearray(span) for span in offsets]
    for tensor in tensors:
        raw = stored[tensor.name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        buffers[tensor.partition][tensor.offset_bytes : tensor.offset_bytes + tensor.size_bytes] = raw
    manifest = Manifest(
        format_version=1,
        digest=Digest("0" * 32),
        source=Source(kind="safetensors", location="memory", fingerprint=""),
        architecture=type(model).__name__,
        config=model.config.to_dict(),
        tensors=tuple(tensors),
        ties=ties,
        partitions=tuple(
            Partition(span_bytes=span, files=(DataFile(path=f"p{i}", base_bytes=0, size_bytes=span),))
            for i, span in enumerate(offsets)
        ),
    )
    return InMemory(manifest, buffers, model)


def _layer(name: str, layers: int) -> int:
    """Embeddings go with the first layer, what follows the last one behind it."""
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    if numbers:
        return numbers[0]
    return 0 if "embed" in name else layers

"""Models that sllmd makes itself: ``tiny``, a llama of random weights that any machine can run.

Deterministic, made with numpy: nothing is downloaded, and two machines make the same bytes. Its tokens are
bytes, so any text goes in; what comes out means nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers

from sllmd.core.errors import ModelNotFound
from sllmd.store.durable import make_directory, write_file
from sllmd.store.source import CONFIG_FILE, SINGLE_FILE, TOKENIZER_FILE

PREFIX = "builtin:"
_SEED = 20240607
_HIDDEN, _INTERMEDIATE, _LAYERS, _HEADS, _KEY_VALUE_HEADS, _HEAD = 64, 176, 2, 4, 2, 16
_CONTEXT_TOKENS = 2048
_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_VOCABULARY = 256 + len(_SPECIAL_TOKENS)
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_builtin(name: str, directory: Path) -> None:
    """Write the built-in model ``name`` as a safetensors directory. Raises ModelNotFound for another name."""
    if name != "tiny":
        raise ModelNotFound(f"there is no built-in model `{name}`", hint="the only one is builtin:tiny")
    make_directory(directory)
    files = {
        CONFIG_FILE: _json(_config()),
        "generation_config.json": _json({"bos_token_id": 256, "eos_token_id": [256, 258]}),
        "tokenizer_config.json": _json(_tokenizer_config()),
        TOKENIZER_FILE: _tokenizer().to_str(pretty=True).encode(),
        SINGLE_FILE: _safetensors(_weights()),
    }
    for file, data in files.items():
        write_file(directory / file, data)


def _config() -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": 256,
        "dtype": "float32",
        "eos_token_id": 256,
        "head_dim": _HEAD,
        "hidden_act": "silu",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INTERMEDIATE,
        "max_position_embeddings": _CONTEXT_TOKENS,
        "mlp_bias": False,
        "num_attention_heads": _HEADS,
        "num_hidden_layers": _LAYERS,
        "num_key_value_heads": _KEY_VALUE_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
        "vocab_size": _VOCABULARY,
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "model_max_length": _CONTEXT_TOKENS,
        "chat_template": _CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }


def _tokenizer() -> tokenizers.Tokenizer:
    """One token per byte, in the order that byte-level vocabularies use, and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab={text: i for i, text in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in _SPECIAL_TOKENS])
    return tokenizer


def _weights() -> dict[str, NDArray[np.float32]]:
    generator = np.random.Generator(np.random.PCG64(_SEED))

    def random(rows: int, columns: int) -> NDArray[np.float32]:
        # Wide enough that logits differ and a greedy continuation is not one byte for ever.
        scaled: NDArray[np.float64] = generator.standard_normal((rows, columns)) * columns**-0.5
        return scaled.astype(np.float32)

    weights = {"model.embed_tokens.weight": random(_VOCABULARY, _HIDDEN)}
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.input_layernorm.weight": np.ones(_HIDDEN, np.float32),
            f"{prefix}.self_attn.q_proj.weight": random(_HEADS * _HEAD, _HIDDEN),
            f"{prefix}.self_attn.k_proj.weight": random(_KEY_VALUE_HEADS * _HEAD, _HIDDEN),
            f"{prefix}.self_attn.v_proj.weight": random(_KEY_VALUE_HEADS * _HEAD, _HIDDEN),
            f"{prefix}.self_attn.o_proj.weight": random(_HIDDEN, _HEADS * _HEAD),
            f"{prefix}.post_attention_layernorm.weight": np.ones(_HIDDEN, np.float32),
            f"{prefix}.mlp.gate_proj.weight": random(_INTERMEDIATE, _HIDDEN),
            f"{prefix}.mlp.up_proj.weight": random(_INTERMEDIATE, _HIDDEN),
            f"{prefix}.mlp.down_proj.weight": random(_HIDDEN, _INTERMEDIATE),
        }
    weights["model.norm.weight"] = np.ones(_HIDDEN, np.float32)
    return weights


def _safetensors(weights: dict[str, NDArray[np.float32]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, array in weights.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [position, position + array.nbytes],
        }
        position += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *(array.tobytes() for array in weights.values())])


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1).encode()

"""Small models in GGUF, made on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import tokenizers

WIDTH, HEADS, FEED_FORWARD, VOCABULARY = 64, 4, 96, 260


def write_gguf(
    path: Path, kinds: Mapping[str, gguf.GGMLQuantizationType], *, architecture: str = "llama"
) -> dict[str, np.ndarray]:
    """A model of one layer; ``kinds``: how tensors are stored, by name, the others in float32.

    Returns what its tensors hold, by their names in GGUF.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(50_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    _add_tokenizer(writer)
    random = np.random.default_rng(2)
    arrays = {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in _shapes(biased=architecture == "qwen2").items()
    }
    for name, array in arrays.items():
        kind = kinds.get(name, gguf.GGMLQuantizationType.F32)
        suffix = "" if name.endswith(".bias") else ".weight"
        writer.add_tensor(f"{name}{suffix}", gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return arrays


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    tokens = [*sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "he", "<s>", "</s>", "<pad>"]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3] * 3)
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def _shapes(*, biased: bool) -> dict[str, tuple[int, ...]]:
    biases = {f"blk.0.attn_{name}.bias": (WIDTH,) for name in "qkv"} if biased else {}
    return biases | {
        "token_embd": (VOCABULARY, WIDTH),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (WIDTH, WIDTH),
        "blk.0.attn_v": (WIDTH, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.ffn_gate": (FEED_FORWARD, WIDTH),
        "blk.0.ffn_up": (FEED_FORWARD, WIDTH),
        "blk.0.ffn_down": (WIDTH, FEED_FORWARD),
        "output_norm": (WIDTH,),
    }

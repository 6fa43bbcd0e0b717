"""The checkpoints that are measured: one real model, and random ones of a chosen size.

Owns the files under ``models/`` of the cache. Random weights load and compute exactly like trained ones;
only their text is nonsense. They are written tensor by tensor, so a 4 GB file needs 200 MB of memory.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.environments import cache_directory, log

_SCRIPT = Path(__file__).parent.parent / "scripts" / "demo-model"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_BF16_ONE = 0x3F80


@dataclass(frozen=True)
class Shape:
    """A llama without weights."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


RANDOM = {
    "random-1g": Shape(2048, 5632, 10, heads=32, kv_heads=4, head_dim=64),
    "random-4g": Shape(2560, 6912, 27, heads=20, kv_heads=5, head_dim=128),
    # As large as the demo model: the second model where two take turns.
    "random-demo": Shape(576, 1536, 30, heads=9, kv_heads=3, head_dim=64),
}


@cache
def demo_directory() -> Path:
    """The real model, SmolLM2-135M-Instruct, as a safetensors directory in bfloat16; made when absent.

    A copy of its own: nobody else maps it, so that its pages can be dropped. Raises
    subprocess.CalledProcessError.
    """
    directory = cache_directory() / "models" / "demo"
    if not directory.exists():
        said = subprocess.run([_SCRIPT], check=True, stdout=subprocess.PIPE, text=True)
        partial = directory.with_name("demo.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(said.stdout.strip(), partial)
        partial.rename(directory)
    return directory


def model_directory(name: str) -> Path:
    """A test model's safetensors directory, made when absent."""
    if name == "demo":
        return demo_directory()
    directory = cache_directory() / "models" / name
    if not (directory / "model.safetensors").exists():
        log(f"writing the checkpoint {name} to {directory}")
        _write(directory, RANDOM[name])
    return directory


def weights_bytes(directory: Path) -> int:
    """Bytes of a directory's data files."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _write(directory: Path, shape: Shape) -> None:
    source = demo_directory()
    directory.mkdir(parents=True, exist_ok=True)
    for file in _TOKENIZER_FILES:
        if (source / file).exists():
            shutil.copyfile(source / file, directory / file)
    config = json.loads((source / "config.json").read_text())
    config.update(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
    )
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    config["dtype"] = "bfloat16"
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    tensors = dict(_tensors(shape, config["vocab_size"]))
    temporary = directory / "model.safetensors.partial"
    _write_safetensors(temporary, tensors)
    temporary.rename(directory / "model.safetensors")


def _tensors(shape: Shape, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a llama with tied embeddings, in execution order."""
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (vocabulary, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (shape.hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (wide, shape.hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (narrow, shape.hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (narrow, shape.hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (shape.hidden, wide)
        yield f"{prefix}.post_attention_layernorm.weight", (shape.hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (shape.intermediate, shape.hidden)
        yield f"{prefix}.mlp.up_proj.weight", (shape.intermediate, shape.hidden)
        yield f"{prefix}.mlp.down_proj.weight", (shape.hidden, shape.intermediate)
    yield "model.norm.weight", (shape.hidden,)


def _write_safetensors(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)
    random = np.random.default_rng(20240801)
    with path.open("wb") as file:
        file.write(len(said).to_bytes(8, "little"))
        file.write(said)
        for shape in tensors.values():
            file.write(_values(random, shape))
        file.flush()
        os.fsync(file.fileno())


def _values(random: np.random.Generator, shape: tuple[int, ...]) -> bytes:
    """bfloat16: ones for a norm; else either sign, uniform in [2**-6, 2**-5) by mantissa."""
    count = int(np.prod(shape))
    if len(shape) == 1:
        return np.full(count, _BF16_ONE, dtype=np.uint16).tobytes()
    raw = np.frombuffer(random.bytes(2 * count), dtype=np.uint16)
    return ((raw & 0x807F) | 0x3C80).astype(np.uint16).tobytes()

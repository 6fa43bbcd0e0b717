"""Small checkpoints on disk, and their bytes read back by base + offset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sllmd.store.checkpoint import Checkpoint
from sllmd.store.importing import import_checkpoint
from sllmd.store.settings import ImportSettings
from sllmd.store.store import Store

CHUNK_BYTES = 8192
SETTINGS = ImportSettings(chunk_bytes=CHUNK_BYTES)
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}

Tensors = Mapping[str, np.ndarray]


def llama_tensors(layers: int = 2, width: int = 24, seed: int = 1) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    tensors = {"lm_head.weight": random.random((50, width), np.float32)}
    for layer in reversed(range(layers)):
        prefix = f"model.layers.{layer}"
        for name in ("mlp.down_proj", "self_attn.q_proj", "input_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = random.random((width, width), np.float32)
    tensors["model.norm.weight"] = random.random(width, np.float32)
    tensors["model.embed_tokens.weight"] = random.random((50, width), np.float32)
    return tensors


def write_model(
    directory: Path, tensors: Tensors | None = None, config: Mapping[str, Any] | None = None
) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    (directory / "tokenizer.json").write_text("{}")
    save_file(dict(llama_tensors() if tensors is None else tensors), directory / "model.safetensors")
    return directory


def write_sharded(directory: Path, shards: Mapping[str, Tensors]) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "tokenizer.json").write_text("{}")
    weight_map = {}
    for file, tensors in shards.items():
        (directory / file).parent.mkdir(exist_ok=True)
        save_file(dict(tensors), directory / file)
        weight_map |= dict.fromkeys(tensors, file)
    write_index(directory, weight_map)
    return directory


def write_index(directory: Path, weight_map: Mapping[str, Any]) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def run_import(store: Store, source: Path | str, name: str | None = "m", **options: Any) -> Checkpoint:
    options.setdefault("on_progress", lambda progress: None)
    options.setdefault("settings", SETTINGS)
    return import_checkpoint(store, str(source), name=name, **options)


def read_back(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Every tensor's bytes, ties included, from the files as a loader would put them into memory."""
    spaces = []
    for partition in checkpoint.manifest.partitions:
        space = bytearray(partition.span_bytes)
        for file in partition.files:
            data = (checkpoint.data_directory / file.path).read_bytes()
            assert len(data) == file.size_bytes
            space[file.base_bytes : file.base_bytes + len(data)] = data
        spaces.append(space)
    found = {
        tensor.name: bytes(spaces[tensor.partition][tensor.offset_bytes :][: tensor.size_bytes])
        for tensor in checkpoint.manifest.tensors
    }
    return found | {name: found[stored] for name, stored in checkpoint.manifest.ties.items()}


def as_bytes(tensors: Tensors) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in tensors.items()}


def snapshot(root: Path) -> dict[str, bytes]:
    """Everything in a store that counts: not its lock files, not the empty directories."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.parent.name != "locks"
    }

"""The converter: a child process that turns torch files and GGUF into a safetensors directory.

``python -m sllmd.store.convert {torch,gguf,tokenizer} SOURCE STAGING [--dtype bfloat16]``. It is the only
module of the store that imports torch and transformers, which is why it is a process of its own: the
daemon and the CLI never carry them, and a crash of a parser is an error message. Pickles are read with
torch's weights-only unpickler, which knows tensors and containers and calls nothing else.

It talks in JSON lines on stdout: ``{"done": n, "total": n}`` while it works, and one last
``{"error": class, "message": ..., "hint": ...}`` when it cannot go on (exit code 1). With
``--until-stdin-closes`` it ends when its stdin does, so that it never outlives an import that was killed.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sllmd.core.errors import CheckpointError, MalformedCheckpoint, SllmdError, UnsupportedCheckpoint
from sllmd.store.local import read_index, resolve_inside

SHARD_BYTES = 2 * 1024**3
"""A converted model is written in shards of about this size, so that it never has to be in memory whole."""


def main() -> int:
    """Convert as the arguments say; 0 when the staging directory is complete."""
    arguments = _parse_arguments()
    if arguments.until_stdin_closes:
        threading.Thread(target=_exit_when_stdin_closes, daemon=True).start()
    try:
        arguments.staging.mkdir(parents=True, exist_ok=True)
        if arguments.kind == "torch":
            convert_torch(arguments.source, arguments.staging)
        elif arguments.kind == "gguf":
            convert_gguf(arguments.source, arguments.staging, dtype=arguments.dtype)
        else:
            convert_tokenizer(arguments.source, arguments.staging)
    except SllmdError as error:
        _say(error=type(error).__name__, message=error.message, hint=error.hint)
        return 1
    except OSError as error:
        _say(error="OSError", errno=error.errno, message=str(error), hint=None)
        return 1
    return 0


def convert_gguf(file: Path, staging: Path, *, dtype: str) -> None:
    """Dequantise a GGUF file to ``dtype`` and write weights, config, tokenizer and chat template.

    Raises MalformedCheckpoint and UnsupportedCheckpoint.
    """
    # Seconds to import, and torch files do not need them.
    from transformers import (  # noqa: PLC0415
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
    )
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint  # noqa: PLC0415

    from sllmd.store.gguf_reading import read_gguf_faster  # noqa: PLC0415

    torch.set_num_threads(2)
    target_dtype = getattr(torch, dtype)
    size_bytes = file.stat().st_size
    done_bytes = 0

    def advance(count: int) -> None:
        nonlocal done_bytes
        done_bytes += count
        _say(done=done_bytes, total=size_bytes)

    read_gguf_faster(advance)
    # Alone in a directory, so that nothing beside the file has a say in its config and tokenizer.
    with tempfile.TemporaryDirectory() as alone, _parser_errors(file, alone):
        (Path(alone) / file.name).symlink_to(file.absolute())
        config = AutoConfig.from_pretrained(alone, gguf_file=file.name, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        parsed = load_gguf_checkpoint(
            str(file), return_tensors=True, model_to_load=model, torch_dtype=target_dtype
        )
        tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=file.name, trust_remote_code=False)
    tensors: dict[str, Any] = parsed["tensors"]
    missing = sorted(set(model.state_dict()) - set(tensors) - set(model.all_tied_weights_keys))
    if missing:
        raise MalformedCheckpoint(f"{file.name} has no tensor for {missing[0]} ({len(missing)} missing)")
    config.architectures = [type(model).__name__]
    config.dtype = target_dtype
    config.save_pretrained(staging)
    GenerationConfig.from_model_config(config).save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    _write_shards(iter(tensors.items()), staging)
    _say(done=size_bytes, total=size_bytes)


def convert_torch(source: Path, staging: Path) -> None:
    """Rewrite ``pytorch_model*.bin`` of a directory, or one ``.bin``/``.pt`` file, as safetensors.

    Raises MalformedCheckpoint, and UnsupportedCheckpoint when a file holds anything but tensors.
    """
    files = _torch_files(source)
    total_bytes = sum(file.stat().st_size for file in files)

    def tensors() -> Iterator[tuple[str, Any]]:
        done_bytes = 0
        for file in files:
            yield from _read_state_dict(file).items()
            done_bytes += file.stat().st_size
            _say(done=done_bytes, total=total_bytes)

    _say(done=0, total=total_bytes)
    _write_shards(tensors(), staging)


def convert_tokenizer(source: Path, staging: Path) -> None:
    """Write a ``tokenizer.json`` for a directory that has only a legacy tokenizer.

    Raises UnsupportedCheckpoint when transformers knows no fast form of it.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, trust_remote_code=False)
    except (ValueError, OSError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedCheckpoint(
            f"{source} has no tokenizer.json and its tokenizer cannot be converted: {_first_line(error)}",
            hint="add a tokenizer.json made with transformers' save_pretrained",
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UnsupportedCheckpoint(
            f"{source} has no tokenizer.json and {type(tokenizer).__name__} has no fast form",
            hint="add a tokenizer.json made with transformers' save_pretrained",
        )
    tokenizer.save_pretrained(staging)


def _torch_files(source: Path) -> list[Path]:
    """The files of a torch checkpoint, in the index's order."""
    if source.is_file():
        return [source]
    index = source / "pytorch_model.bin.index.json"
    if not index.is_file():
        return [resolve_inside(source, "pytorch_model.bin", named_by="a torch model")]
    names = dict.fromkeys(read_index(index).values())
    return [resolve_inside(source, name, named_by=index.name) for name in names]


def _read_state_dict(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise MalformedCheckpoint(f"{file.name} is not a regular file")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        raise UnsupportedCheckpoint(
            f"{file.name} is refused: its pickle holds more than tensors ({_first_line(error)})",
            hint="convert it to safetensors where you trust it; sllmd never runs a pickle",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise MalformedCheckpoint(f"{file.name} is not a torch checkpoint: {_first_line(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise UnsupportedCheckpoint(f"{file.name} holds no state dict")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UnsupportedCheckpoint(f"{file.name}: {name!r} is a {type(value).__name__}, not a tensor")
        if value.is_quantized or value.layout != torch.strided:
            raise UnsupportedCheckpoint(f"{file.name}: {name!r} is quantised or sparse")
    return loaded


def _write_shards(tensors: Iterator[tuple[str, Any]], staging: Path) -> None:
    """Write tensors as safetensors shards with an index; each tensor gets bytes of its own."""
    weight_map: dict[str, str] = {}
    shard: dict[str, Any] = {}
    shard_bytes = number = 0

    def flush() -> None:
        nonlocal shard, shard_bytes, number
        number += 1
        path = staging / f"model-{number:05d}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, path.name))
        shard, shard_bytes = {}, 0

    for name, tensor in tensors:
        if name in weight_map or name in shard:
            raise MalformedCheckpoint(f"tensor {name} is in the checkpoint twice")
        # A clone has no storage in common with a tied twin; the layout finds ties by content.
        shard[name] = tensor.detach().contiguous().clone()
        shard_bytes += shard[name].nbytes
        if shard_bytes >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    if number == 1:
        (staging / "model-00001.safetensors").rename(staging / "model.safetensors")
        return
    index = {"metadata": {}, "weight_map": weight_map}
    (staging / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


class _parser_errors:  # noqa: N801  (reads as a statement)
    """Turn what GGUF parsers raise on bad input into a CheckpointError that names the file.

    ``alone``: the directory where the parsers saw it, which nobody else knows.
    """

    def __init__(self, file: Path, alone: str) -> None:
        self.file = file
        self.alone = alone

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or isinstance(error, CheckpointError) or not isinstance(error, Exception):
            return
        text = _first_line(error).replace(self.alone, str(self.file.parent))
        if "not supported" in text or isinstance(error, NotImplementedError):
            raise UnsupportedCheckpoint(f"{self.file}: {text}") from error
        raise MalformedCheckpoint(f"{self.file} is not a readable GGUF file: {text}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


def _say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _exit_when_stdin_closes() -> None:
    # Unbuffered: a thread inside sys.stdin's lock would abort the interpreter's shutdown.
    while os.read(0, 4096):
        pass
    os._exit(2)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sllmd.store.convert", description="Convert a model to safetensors")
    parser.add_argument("kind", choices=("torch", "gguf", "tokenizer"))
    parser.add_argument("source", type=Path)
    parser.add_argument("staging", type=Path)
    parser.add_argument("--until-stdin-closes", action="store_true")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""Other people's loaders, one per process. Run in the environment ``loaders``; prints JSON.

``python peers_load.py prepare DIRECTORY`` writes the formats that need a conversion;
``python peers_load.py LOADER DIRECTORY`` loads once. Timed is what a caller waits for after imports: until
every tensor is in memory, one byte of each page touched, so that nobody looks fast by putting reading off.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

PAGE_BYTES = 4096
Load = Callable[[], Iterable[torch.Tensor]]


def torch_load(directory: Path) -> Load:
    """``torch.load`` of a .bin file, weights only."""
    return lambda: torch.load(directory / "model.bin", weights_only=True).values()


def load_file(directory: Path) -> Load:
    """``safetensors.torch.load_file``."""
    from safetensors.torch import load_file as load

    return lambda: load(directory / "model.safetensors").values()


def from_pretrained(directory: Path) -> Load:
    """transformers, the usual way; includes building the model."""
    import transformers.models.llama.modeling_llama  # noqa: F401  (imports are not timed)
    from transformers import AutoModelForCausalLM

    return lambda: AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).parameters()


def runai(directory: Path) -> Load:
    """runai-model-streamer, 16 threads by default."""
    from runai_model_streamer import SafetensorsStreamer

    def load() -> list[torch.Tensor]:
        with SafetensorsStreamer() as streamer:
            streamer.stream_file(str(directory / "model.safetensors"))
            return [tensor for _, tensor in streamer.get_tensors()]

    return load


def fastsafetensors(directory: Path) -> Load:
    """fastsafetensors without GPU direct storage, which a CPU does not have."""
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    kept: list[object] = []

    def load() -> list[torch.Tensor]:
        loader = SafeTensorsFileLoader(SingleGroup(), device="cpu", nogds=True)
        loader.add_filenames({0: [str(directory / "model.safetensors")]})
        buffer = loader.copy_files_to_device()
        kept.extend((loader, buffer))
        return [buffer.get_tensor(name) for name in buffer.key_to_rank_lidx]

    return load


def tensorizer(directory: Path) -> Load:
    """CoreWeave's tensorizer, its own format, eight readers."""
    from tensorizer import TensorDeserializer

    kept: list[object] = []

    def load() -> list[torch.Tensor]:
        deserializer = TensorDeserializer(str(directory / "model.tensors"), device="cpu", num_readers=8)
        kept.append(deserializer)
        return list(deserializer.values())

    return load


LOADERS: dict[str, Callable[[Path], Load]] = {
    "torch.load": torch_load,
    "safetensors load_file": load_file,
    "from_pretrained": from_pretrained,
    "runai-model-streamer": runai,
    "fastsafetensors": fastsafetensors,
    "tensorizer": tensorizer,
}


def prepare(directory: Path) -> None:
    """Write ``model.bin`` and ``model.tensors`` beside the safetensors file."""
    from safetensors.torch import load_file as load

    if not (directory / "model.bin").exists():
        torch.save(load(directory / "model.safetensors"), directory / "model.bin.partial")
        (directory / "model.bin.partial").rename(directory / "model.bin")
    if not (directory / "model.tensors").exists():
        from tensorizer import TensorSerializer

        serializer = TensorSerializer(str(directory / "model.tensors.partial"))
        serializer.write_state_dict(load(directory / "model.safetensors"))
        serializer.close()
        (directory / "model.tensors.partial").rename(directory / "model.tensors")


def touch(tensors: Iterable[torch.Tensor]) -> int:
    """Read one byte of each page; returns the bytes of all tensors."""
    total_bytes = 0
    for tensor in tensors:
        raw = tensor.detach().view(-1).view(torch.uint8)
        raw[::PAGE_BYTES].sum()
        total_bytes += raw.numel()
    return total_bytes


def measure(load: Load) -> dict[str, float]:
    """Load once, warm of imports and cold of everything else."""
    torch.ones(8192, dtype=torch.uint8)[::PAGE_BYTES].sum()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that imports reached
    before_bytes = peak_bytes()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    begin = time.perf_counter()
    total_bytes = touch(load())
    seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "bytes": total_bytes,
        "cpu_seconds": after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime,
        "peak_bytes": peak_bytes() - before_bytes,
    }


def peak_bytes() -> int:
    """Highest resident size since ``clear_refs``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "prepare":
        prepare(where)
    else:
        result = measure(LOADERS[what](where))
        print(json.dumps(result), flush=True)
        os._exit(0)  # a peer that is slow to free its memory is not what is measured

"""A transformers engine brought up in a worker: mapped memory in, engine out.

Owns: the order of things (skeleton, copy, weights) on the CPU and on CUDA devices, and its rehearsal in a
worker that waits. Imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig

from sllmd.core.ids import Digest
from sllmd.engine.device_copy import DeviceCopy
from sllmd.engine.memory import MappedPartition
from sllmd.engine.protocol import Engine, EngineOptions
from sllmd.engine.transformer import Builder, thread_count
from sllmd.engine.warmup import warm_up
from sllmd.engine.weights import Weights
from sllmd.store.manifest import Manifest, Source, Tensor


class TransformersBuilder:
    """See ``builders.EngineBuilder``."""

    def __init__(
        self,
        manifest: Manifest,
        options: EngineOptions,
        mapped: Sequence[MappedPartition],
        devices: Sequence[str],
    ) -> None:
        self._manifest = manifest
        self._mapped = mapped
        self._builder = Builder(manifest, options)
        on_cpu = all(device.startswith("cpu") for device in devices)
        self._copy = None if on_cpu else DeviceCopy(manifest, [part.buffer() for part in mapped], devices)

    def skeleton(self) -> None:
        """Modules on the meta device."""
        self._builder.skeleton()

    def progress(self, bytes_ready: Sequence[int]) -> None:
        """Copy to the device what has arrived. A CPU needs no copy."""
        if self._copy is not None:
            self._copy.advance(bytes_ready)

    def use_threads(self, threads: int) -> None:
        """The engine will run on so many threads."""
        self._builder.use_threads(threads)

    def finish(self) -> Engine:
        """Weights in place."""
        if self._copy is not None:
            return self._builder.finish(self._copy.finish())
        buffers: list[Any] = [partition.buffer() for partition in self._mapped]
        return self._builder.finish(Weights.over_memory(self._manifest, buffers))


def give_back() -> None:
    """What no tensor needs any more goes back to the devices: torch would keep it for the next ones."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def rehearse() -> None:
    """Go once through what an attach will do, in the worker that will do it.

    It starts the threads of a forward pass, and gives this process its own copies of the pages that building
    a model writes to (reference counts, mostly): 8 of 20 ms that would otherwise be spent during the attach.
    """
    warm_up()
    manifest = Manifest.model_validate_json(_tiny_manifest().model_dump_json())
    Builder(manifest, EngineOptions(threads=1)).skeleton()
    torch.set_num_threads(thread_count(EngineOptions(threads=0)))
    torch.ones(1 << 20).add_(1)


def _tiny_manifest() -> Manifest:
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    weight = Tensor(name="w", dtype="BF16", shape=(1,), partition=0, offset_bytes=0, size_bytes=2)
    return Manifest(
        format_version=1,
        digest=Digest(""),
        source=Source(kind="safetensors", location="", fingerprint=""),
        architecture="LlamaForCausalLM",
        config=config.to_dict(),
        tensors=(weight,),
        ties={},
        partitions=(),
    )

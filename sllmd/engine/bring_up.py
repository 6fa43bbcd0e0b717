"""A transformers engine brought up in a worker: mapped memory in, engine out.

Owns: the order of things (skeleton, pages, weights) on the CPU and on CUDA devices. Imports torch.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from sllmd.engine.device_copy import DeviceCopy
from sllmd.engine.memory import MappedPartition
from sllmd.engine.protocol import Engine, EngineOptions
from sllmd.engine.transformer import Builder
from sllmd.engine.weights import Weights
from sllmd.store.manifest import Manifest


class TransformersBuilder:
    """See ``worker.EngineBuilder``."""

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
        self._populated_bytes = [0] * len(mapped)

    def skeleton(self) -> None:
        """Modules on the meta device."""
        self._builder.skeleton()

    def progress(self, bytes_ready: Sequence[int]) -> None:
        """Copy to the device what has arrived, or map its pages; what comes later is left to ``finish``."""
        if self._copy is not None:
            self._copy.advance(bytes_ready)
            return
        for index, ready_bytes in enumerate(bytes_ready):
            self._mapped[index].populate(self._populated_bytes[index], ready_bytes)
            self._populated_bytes[index] = ready_bytes

    def finish(self) -> Engine:
        """Weights in place; the rest of their pages follow beside the first forward pass."""
        if self._copy is not None:
            return self._builder.finish(self._copy.finish())
        buffers: list[Any] = [partition.buffer() for partition in self._mapped]
        engine = self._builder.finish(Weights.over_memory(self._manifest, buffers))
        threading.Thread(target=self._populate_rest, name="pages", daemon=True).start()
        return engine

    def _populate_rest(self) -> None:
        for partition, populated_bytes in zip(self._mapped, self._populated_bytes, strict=True):
            partition.populate(populated_bytes, partition.span_bytes)

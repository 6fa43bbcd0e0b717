"""A checkpoint's way from DRAM to devices, chunk by chunk, while it is still arriving in DRAM.

Owns: one allocation per partition on its device, and the copies into it. Each partition has a stream of its
own, so that copies run beside each other and beside whatever the device computes. Pages are registered with
CUDA just ahead of the copy engine, which then reads them without a staging buffer; registering one chunk
overlaps copying the one before. Knows nothing of models. Start at ``DeviceCopy.advance``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import structlog
import torch

from sllmd.engine.weights import Weights, view_tensors
from sllmd.store.manifest import Manifest

_log = structlog.get_logger(__name__)

_HOST_REGISTER_READ_ONLY = 8
"""cudaHostRegisterReadOnly: the tier's pages are mapped without write permission."""


_cuda: Any = torch.cuda  # only half typed


class DeviceCopy:
    """Partition p goes to ``devices[p]``; with fewer devices, the last one takes the rest."""

    def __init__(self, manifest: Manifest, partitions: Sequence[Any], devices: Sequence[str]) -> None:
        """Allocate on the devices. ``partitions`` are buffers over DRAM, which may still be filling."""
        self._manifest = manifest
        self._lanes = [
            _Lane(buffer, torch.device(devices[min(index, len(devices) - 1)]), manifest.chunk_bytes)
            for index, buffer in enumerate(partitions)
        ]

    def advance(self, bytes_ready: Sequence[int]) -> None:
        """Start the copies of all whole chunks below each partition's watermark. Does not wait for them."""
        for lane, ready_bytes in zip(self._lanes, bytes_ready, strict=True):
            lane.copy_until(ready_bytes, only_whole_chunks=True)

    def finish(self) -> Weights:
        """Copy the rest, with all bytes there; tensors on the devices once everything has arrived."""
        for lane in self._lanes:
            lane.copy_until(lane.span_bytes, only_whole_chunks=False)
        for lane in self._lanes:
            lane.wait()
        return Weights(view_tensors(self._manifest, [lane.target for lane in self._lanes]))


class _Lane:
    """One partition's copy."""

    def __init__(self, buffer: Any, device: torch.device, chunk_bytes: int) -> None:
        self._source = torch.frombuffer(buffer, dtype=torch.uint8)
        self.span_bytes = self._source.numel()
        self.target = torch.empty(self.span_bytes, dtype=torch.uint8, device=device)
        self._chunk_bytes = chunk_bytes
        self._copied_bytes = 0
        self._stream: Any = _cuda.Stream(device) if device.type == "cuda" else None
        self._registered: list[int] = []
        self._may_register = self._stream is not None

    def copy_until(self, ready_bytes: int, *, only_whole_chunks: bool) -> None:
        while self._copied_bytes < ready_bytes:
            stop = min(self._copied_bytes + self._chunk_bytes, self.span_bytes)
            if stop > ready_bytes and only_whole_chunks:
                return
            self._copy(self._copied_bytes, stop)
            self._copied_bytes = stop

    def wait(self) -> None:
        """All started copies have arrived; their pages need not be registered any longer."""
        if self._stream is not None:
            self._stream.synchronize()
        for address in self._registered:
            _cuda.cudart().cudaHostUnregister(address)
        self._registered.clear()

    def _copy(self, start: int, stop: int) -> None:
        piece = self._source[start:stop]
        if self._stream is None:
            self.target[start:stop].copy_(piece)
            return
        self._register(piece)
        with torch.cuda.stream(self._stream):
            self.target[start:stop].copy_(piece, non_blocking=True)

    def _register(self, piece: torch.Tensor) -> None:
        if not self._may_register:
            return
        address = piece.data_ptr()
        with torch.cuda.device(self.target.device):
            refusal = int(_cuda.cudart().cudaHostRegister(address, piece.numel(), _HOST_REGISTER_READ_ONLY))
        if refusal:
            self._may_register = False
            self._forget_refusal()
            _log.warning("copying through CUDA's staging buffer", reason=f"cudaHostRegister: error {refusal}")
        else:
            self._registered.append(address)

    def _forget_refusal(self) -> None:
        """CUDA keeps the error for whoever asks next, torch after its next launch: let that be this one."""
        with contextlib.suppress(RuntimeError):
            self.target[:1].zero_()

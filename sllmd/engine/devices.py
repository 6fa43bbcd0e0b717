"""The devices of this node: NVIDIA GPUs as NVML lists them, or virtual CPU devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pynvml
import structlog

from sllmd.core.errors import ConfigError

Backend = Literal["auto", "cpu", "cuda"]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Device:
    """Something a replica runs on."""

    name: str
    """``cuda:0``, ``cpu:0``: also what torch is told, but for the number behind ``cpu``."""
    kind: Literal["cpu", "cuda"]
    memory_bytes: int | None
    """None: shares the DRAM tier's memory (CPU), whose books bound it."""
    description: str


def detect_devices(backend: Backend, *, cpu_devices: int) -> tuple[Device, ...]:
    """GPUs when there are any and ``backend`` allows it, else ``cpu_devices`` virtual CPU devices.

    Raises ConfigError when ``backend`` is ``cuda`` and NVML finds no GPU.
    """
    if backend != "cpu":
        gpus = _gpus()
        if gpus:
            return gpus
        if backend == "cuda":
            raise ConfigError(
                "`[devices] backend` is `cuda` and NVML finds no NVIDIA GPU",
                hint='install the driver, or set backend = "cpu"',
            )
        _log.warning("no NVIDIA GPU found: serving on the CPU", hint='backend = "cpu" says it is meant so')
    return tuple(Device(f"cpu:{index}", "cpu", None, "CPU") for index in range(cpu_devices))


def _gpus() -> tuple[Device, ...]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(_gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Device(f"cuda:{index}", "cuda", int(memory.total), str(pynvml.nvmlDeviceGetName(handle)))

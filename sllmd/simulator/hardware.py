"""The virtual machines, and the models that they serve. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sllmd.core.ids import ModelName
from sllmd.scheduler.facts import Model

GB = 10**9


@dataclass(frozen=True, slots=True)
class Hardware:
    """Every node alike. Bandwidths are bytes per second: what is measured on the machines in question."""

    nodes: int = 4
    devices: int = 4
    device_bytes: int = 48 * GB
    dram_bytes: int = 512 * GB
    to_device: float = 20e9
    from_ssd: float = 5e9
    network: float = 10e9 / 8
    start_seconds: float = 0.1
    """From a load's last byte to a ready replica."""
    wake_seconds: float = 0.03
    evict_seconds: float = 0.05
    noise: float = 0.03
    """Spread of a load's pace, as the logarithm's standard deviation."""

    def bytes_per_second(self) -> Mapping[str, float]:
        """As an inventory states it."""
        return {
            "dram": self.to_device,
            "ssd": self.from_ssd,
            "peer": self.network,
            "remote": self.network,
        }


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a model computes: ``prefill`` seconds per prompt token and in all, seconds per new token."""

    token_prefill_seconds: float
    prefill_seconds: float
    token_seconds: float


@dataclass(frozen=True, slots=True)
class Kind:
    """A family of models that differ in name only."""

    label: str
    load_bytes: tuple[int, ...]
    device_bytes: tuple[int, ...]
    pace: Pace
    rows: int = 1

    def model(self, index: int) -> Model:
        """The ``index``-th of them."""
        return Model(ModelName(f"{self.label}-{index}"), self.load_bytes, self.device_bytes, self.rows)


def _fp16(label: str, billions: float, devices: int, pace: Pace) -> Kind:
    part = round(billions * 2 * GB / devices)
    return Kind(label, (part,) * devices, (max(part + 8 * GB, 25 * GB),) * devices, pace)


KINDS = {
    "opt-6.7b": _fp16("opt-6.7b", 6.7, 1, Pace(0.0002, 0.02, 0.026)),
    "opt-13b": _fp16("opt-13b", 13, 1, Pace(0.0004, 0.03, 0.045)),
    "opt-30b": _fp16("opt-30b", 30, 2, Pace(0.0006, 0.05, 0.060)),
}
"""In 16 bits; one replica per device of 48 GB, the 30B model over two. Paces are of the order of such
devices; each replica serves one request at a time, which makes devices as scarce as in the paper's
setting."""

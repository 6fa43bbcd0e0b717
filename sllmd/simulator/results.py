"""What a run found, and how sure it is. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sllmd.scheduler.learning import quantile

_T_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""Student's t for 95 % by degrees of freedom from 1; the normal's 1.96 beyond the table."""


@dataclass(slots=True)
class Result:
    """One policy on one trace."""

    policy: str
    seed: int
    startup_seconds: list[float] = field(default_factory=list)
    """Per request: from its arrival to its first row, and every later standstill (preempted, moved)."""
    cold: int = 0
    """Requests for which a load was begun, or that waited for one."""
    cold_startup_seconds: list[float] = field(default_factory=list)
    """Of those, as above."""
    failed: int = 0
    loads: dict[str, int] = field(default_factory=dict)
    """By the tier the bytes came from."""
    woken: int = 0
    """Loads that a sleeping replica took."""
    moved: int = 0
    preempted: int = 0
    busy_device_seconds: list[float] = field(default_factory=list)
    """Per step of ``step_seconds``: device time spent on generations."""
    step_seconds: float = 10.0
    devices: int = 1
    seconds: float = 0.0
    error_median: float | None = None
    """The estimator's relative error over all loads."""

    def p(self, share: float) -> float:
        """A quantile of the startup times; nan without requests."""
        return quantile(sorted(self.startup_seconds), share) if self.startup_seconds else math.nan

    def mean(self) -> float:
        """The mean startup time."""
        return statistics.fmean(self.startup_seconds) if self.startup_seconds else math.nan

    def utilisation(self) -> float:
        """Share of device time spent on generations."""
        return sum(self.busy_device_seconds) / (self.devices * self.seconds) if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds and its 95 % confidence interval."""

    mean: float
    half_width: float

    def text(self, digits: int = 2) -> str:
        """``1.23 ± 0.04``."""
        return f"{self.mean:.{digits}f} ± {self.half_width:.{digits}f}"


def interval(samples: Sequence[float]) -> Interval:
    """Of independent samples, by Student's t."""
    if len(samples) < 2:
        return Interval(samples[0] if samples else math.nan, math.inf)
    freedom = len(samples) - 1
    t = _T_975[freedom - 1] if freedom <= len(_T_975) else 1.96
    return Interval(statistics.fmean(samples), t * statistics.stdev(samples) / math.sqrt(len(samples)))


@dataclass(frozen=True, slots=True)
class Summary:
    """One policy over all seeds."""

    policy: str
    requests: int
    failed: int
    mean: Interval
    p50: float
    p95: float
    p99: Interval
    cold_share: float
    loads: dict[str, int]
    woken: int
    moved: int
    preempted: int
    utilisation: float

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "policy": self.policy,
            "requests": self.requests,
            "failed": self.failed,
            "startup_mean_seconds": self.mean.mean,
            "startup_mean_seconds_ci95": self.mean.half_width
            if math.isfinite(self.mean.half_width)
            else None,
            "startup_p50_seconds": self.p50,
            "startup_p95_seconds": self.p95,
            "startup_p99_seconds": self.p99.mean,
            "startup_p99_seconds_ci95": self.p99.half_width if math.isfinite(self.p99.half_width) else None,
            "cold_share": self.cold_share,
            "loads": self.loads,
            "woken": self.woken,
            "moved": self.moved,
            "preempted": self.preempted,
            "utilisation": self.utilisation,
        }


def summarise(results: Sequence[Result]) -> Summary:
    """Of one policy's runs: quantiles inside a run, then means over runs."""
    requests = sum(len(result.startup_seconds) for result in results)
    loads: dict[str, int] = {}
    for result in results:
        for tier, count in result.loads.items():
            loads[tier] = loads.get(tier, 0) + count
    ran = [result for result in results if result.startup_seconds]
    return Summary(
        policy=results[0].policy,
        requests=requests,
        failed=sum(result.failed for result in results),
        mean=interval([result.mean() for result in ran]),
        p50=interval([result.p(0.5) for result in ran]).mean,
        p95=interval([result.p(0.95) for result in ran]).mean,
        p99=interval([result.p(0.99) for result in ran]),
        cold_share=sum(result.cold for result in results) / max(requests, 1),
        loads=dict(sorted(loads.items())),
        woken=sum(result.woken for result in results),
        moved=sum(result.moved for result in results),
        preempted=sum(result.preempted for result in results),
        utilisation=statistics.fmean(result.utilisation() for result in results),
    )

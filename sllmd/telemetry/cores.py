"""How many cores this process can keep busy with arithmetic."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from sllmd.telemetry.cgroup import cgroup_text


def usable_cores() -> int:
    """Physical cores that this process may run on, within its control group's quota; at least one."""
    cores = physical_cores(_siblings(cpu) for cpu in os.sched_getaffinity(0))
    quota = quota_cores(cgroup_text("cpu.max") or "max")
    return max(1, cores if quota is None else min(cores, int(quota)))


def physical_cores(siblings: Iterable[str]) -> int:
    """Cores behind CPUs, each CPU named by those that share its core: two threads of a core add little to
    arithmetic that keeps its units busy.
    """
    return len(set(siblings))


def quota_cores(cpu_max: str) -> float | None:
    """What ``cpu.max`` allows, in cores; None: all there are."""
    quota, *period = cpu_max.split()
    return None if quota == "max" else int(quota) / int(period[0])


def _siblings(cpu: int) -> str:
    """The CPUs of this one's core, as the system lists them; one that lists none stands for itself."""
    file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    return file.read_text().strip() if file.is_file() else str(cpu)

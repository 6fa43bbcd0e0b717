"""How much memory there is, and how much is free, within the limits of this process's control group."""

from __future__ import annotations

from pathlib import Path

from sllmd.telemetry.cgroup import cgroup_text


def total_memory_bytes() -> int:
    """This machine's memory, or what its control group allows if that is less."""
    total = _meminfo_bytes("MemTotal")
    limit = _cgroup_number("memory.max")
    return total if limit is None else min(total, limit)


def available_memory_bytes() -> int:
    """What could be taken without swapping: the machine's, and within the control group's limit."""
    available = _meminfo_bytes("MemAvailable")
    limit, current = _cgroup_number("memory.max"), _cgroup_number("memory.current")
    if limit is None or current is None:
        return available
    # The group's count includes page cache, which the system takes back when it is needed.
    cache = _cgroup_number("memory.stat", "inactive_file ") or 0
    return min(available, limit - current + cache)


def _meminfo_bytes(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/meminfo has no {field}")


def _cgroup_number(name: str, field: str = "") -> int | None:
    """A number of this process's control group; None where there is none or no limit."""
    text = cgroup_text(name)
    if text is None:
        return None
    values = [line.removeprefix(field) for line in text.splitlines() if line.startswith(field)]
    return int(values[0]) if values and values[0].isdigit() else None

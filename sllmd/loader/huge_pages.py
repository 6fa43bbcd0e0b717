"""Whether slabs can have huge pages, and what that is worth.

Slabs are shared memory, which Linux gives small pages unless the machine's owner allows huge ones. A read
through O_DIRECT into small pages is cut into requests of as many pages as the disk takes segments, often
1 MB in all; on a disk that is limited in requests per second that was a third of its bandwidth (1.4 GB/s
against 4.2, measured on a virtual disk).
"""

from __future__ import annotations

from pathlib import Path

_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_ALLOWING = ("always", "within_size", "advise", "force")


def page_state(switch: Path = _SWITCH) -> str:
    """``huge``, or ``small: `` and why, with the remedy."""
    try:
        chosen = switch.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return "small: this kernel has no huge pages for shared memory"
    if chosen in _ALLOWING:
        return "huge"
    return f"small: {switch} is `{chosen}`; `echo advise > {switch}` lets disks be read in larger requests"

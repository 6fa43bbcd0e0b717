"""A bench of several sections: modules of its package, each with GOALS and ``measure(report, options)``.

A section that fails is said aloud, its goals are misses, and the others are still measured.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from importlib import import_module

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Report


def run_sections(package: str, names: Sequence[str], options: Options) -> Report:
    """The chosen sections. Goals of the others have no value and say so: misses. Raises ValueError."""
    wanted = chosen(names, options.only)
    sections = {name: import_module(f"{package}.{name}") for name in names}
    report = Report([goal for section in sections.values() for goal in section.GOALS])
    for name, section in sections.items():
        if name not in wanted:
            report.not_run |= {goal.name for goal in section.GOALS}
            continue
        log(f"{package}: {name}")
        try:
            section.measure(report, options)
        except Exception:  # noqa: BLE001  a section that crashed is a miss, and says why
            log(f"{package}: {name} failed\n{traceback.format_exc()}")
    return report


def chosen(names: Sequence[str], only: Sequence[str]) -> list[str]:
    """Those of ``names`` in ``only``, all without a choice. Raises ValueError about one that there is not."""
    unknown = set(only) - set(names)
    if unknown:
        raise ValueError(f"no section {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    return [name for name in names if not only or name in only]

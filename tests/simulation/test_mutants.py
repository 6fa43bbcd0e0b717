"""Is the simulator any good? Every planted bug must be found, within so many seeds."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import HOSTS
from tests.simulation.world import Violation, play

SEEDS = 12
"""The most that a planted bug may survive; nearly all are found by the first two."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(HOSTS))
def test_the_planted_bug_is_found(name: str) -> None:
    found = next((said for seed in range(SEEDS) if (said := _verdict(name, seed))), None)
    assert found is not None, f"{name} survived {SEEDS} seeds"
    assert f"--mutant {name} --trace" in found


def _verdict(name: str, seed: int) -> str:
    """What was found, with how to see it again; empty if nothing was."""
    try:
        play(seed, host_class=HOSTS[name])
    except Violation as violation:
        return str(violation)
    return ""

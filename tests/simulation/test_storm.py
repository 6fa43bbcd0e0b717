"""Random bad luck under seeds: the product, without planted bugs, survives all of it."""

from __future__ import annotations

import pytest

from tests.simulation.world import play, seeds


def test_some_seeds() -> None:
    worlds = [play(seed) for seed in seeds(5)]
    assert sum(world.acknowledged for world in worlds) > 500
    assert sum(world.oracle.elections for world in worlds) > 10


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_seeds() -> None:
    for seed in seeds(310)[5:]:
        play(seed)


def test_a_seed_is_a_replay() -> None:
    """The same seed gives the same run to the last event."""
    one, other = play(3), play(3)
    assert (one.events, one.network.sent, one.history) == (other.events, other.network.sent, other.history)

"""Every failure in every phase of a move: no token is lost, doubled or out of order, and nothing leaks."""

from __future__ import annotations

from collections import Counter

import pytest

from sllmd.migration.ledger import Ledger, Verdict
from sllmd.migration.mover import Move, Phase
from tests.simulation.migration.world import WHATS, WHENS, World

SEEDS = 300
"""Of every failure in every phase; ``scripts/bench migration`` plays more."""
FIRST_SEEDS = 60
"""Those that are played before every commit."""


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("when", WHENS)
def test_nothing_is_lost(when, what) -> None:
    play(range(FIRST_SEEDS), when, what)


@pytest.mark.slow
def test_nothing_is_lost_with_more_seeds() -> None:
    for what in WHATS:
        for when in WHENS:
            play(range(FIRST_SEEDS, SEEDS), when, what)


def play(seeds: range, when, what) -> None:
    for seed in seeds:
        wrong = World(seed, when, what).run()
        assert wrong == [], f"seed {seed}, {what}, {when}"


def test_the_world_sees_every_phase_and_every_outcome() -> None:
    """Otherwise the tests above could not fail."""
    outcomes: Counter[str] = Counter()
    for what in WHATS:
        for when in WHENS:
            for seed in range(20):
                world = World(seed, when, what)
                world.run()
                outcomes[f"struck {when}"] += world.struck
                outcomes["moved"] += world.move is not None and world.move.phase is Phase.COMMITTED
                outcomes["not moved"] += world.move is not None and world.move.phase is Phase.OVER
                outcomes["resumed"] += world.patience.failovers > 0
                outcomes["rounds"] += world.move is not None and world.move.rounds > 1
    assert min(outcomes.values()) >= 20, outcomes
    assert len(outcomes) == 9


@pytest.mark.parametrize("mutant", ["deaf to hops", "no index", "late commit"])
def test_a_world_with_a_wrong_part_is_caught(mutant, monkeypatch) -> None:
    if mutant == "deaf to hops":
        take = Ledger.take
        monkeypatch.setattr(Ledger, "take", lambda self, _hop, event: take(self, self.hop, event))
    elif mutant == "no index":
        monkeypatch.setattr(Ledger, "_take_token", _take_whatever)
    else:
        monkeypatch.setattr(Move, "handle", lambda _self, _event: [])
    wrong = [
        problem
        for what in ("nothing", "source doubles", "source skips", "partition heals")
        for when in WHENS
        for seed in range(10)
        for problem in World(seed, when, what).run()
    ]
    assert wrong


def _take_whatever(self, event) -> Verdict:
    self._output_ids.append(event.token_id)
    self._logprobs.append(None)
    self.finish_reason = event.finish_reason
    return Verdict.ACCEPTED

"""What the command line says to the cluster bench."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """Defaults are what the targets are defined by."""

    rounds: int
    only: tuple[str, ...] = ()
    """Sections; empty: all."""
    seeds: int = 2000
    """Of the raft simulator: two cores take four minutes for these."""
    storm_seed: int = 1
    """Another one is another storm."""
    minutes: float = 5.0
    """Of bursts, in the scheduler bench; with fewer a target stays missed."""
    kills: int = 200
    """Of what runs streams, in the migration bench; with fewer its targets stay missed."""

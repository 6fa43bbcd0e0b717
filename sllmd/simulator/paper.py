"""The paper's setting (section 7.3): four servers of four devices, many models, bursty requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sllmd.scheduler.facts import Model
from sllmd.simulator.hardware import KINDS, Hardware, Kind
from sllmd.simulator.results import Result
from sllmd.simulator.simulation import simulate
from sllmd.simulator.traces import LENGTHS, gamma_bursts

CV = 8.0
SERVERS = Hardware()
ZOO = {"opt-6.7b": 32, "opt-13b": 16, "opt-30b": 8}
RATES = (0.2, 0.8, 1.4)
TRACE_SECONDS = 600.0
BASELINES = ("random", "least-loaded", "locality", "shepherd", "download")


@dataclass(frozen=True, slots=True)
class Cell:
    """One size of model at one rate."""

    kind: str
    requests_per_second: float
    lengths: str = "gsm8k"
    seconds: float = TRACE_SECONDS

    def models(self) -> Sequence[tuple[Kind, Model]]:
        """As many as the paper has of that size."""
        kind = KINDS[self.kind]
        return [(kind, kind.model(index)) for index in range(ZOO[self.kind])]

    def run(self, policy: str, seed: int) -> Result:
        """One policy on this cell's trace of that seed."""
        models = self.models()
        trace = gamma_bursts(
            [model.name for _, model in models],
            requests_per_second=self.requests_per_second,
            cv=CV,
            seconds=self.seconds,
            lengths=LENGTHS[self.lengths],
            seed=seed,
        )
        return simulate(SERVERS, models, trace, policy, seed)


def cells() -> list[Cell]:
    """All of the setting."""
    return [Cell(kind, rate) for kind in ZOO for rate in RATES]

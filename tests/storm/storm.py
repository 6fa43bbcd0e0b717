"""The storm: five daemons in a network of their own, misfortune, clients, and the verdict.

``python -m tests.storm.storm --seconds 180 --seed 1`` runs one and prints what was seen.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulation.linearizability import explain
from tests.storm.clients import KEYS, CatalogueClient, Notes, WarmClient, Written, lost_writes
from tests.storm.fleet import Fleet, fleet
from tests.storm.namespaces import Namespaces, namespaces
from tests.storm.nemesis import KINDS, Nemesis

DAEMONS = 5
MODEL = "warm"
SETTINGS = {"cluster.voters.count": DAEMONS, "cluster.voters.settle_seconds": 1.0}
"""All five vote, so that every death counts."""
CATALOGUE_CLIENTS = 20
WARM_CLIENTS = 4
OPERATIONS_PER_SECOND = 60.0
REQUESTS_PER_SECOND = 20.0
TOKEN_SECONDS = 0.02
"""Of the fake engine: a request lasts long enough to meet a misfortune."""
ANSWERED_MIN = 0.99
CALM_SECONDS = 60.0
"""After the storm, within which all must agree again."""


@dataclass
class Verdict:
    """What a storm showed. ``faults`` empty: it was survived."""

    seconds: float
    notes: Notes
    misfortunes: Counter[str]
    calm_seconds: float
    faults: list[str] = field(default_factory=list)

    def text(self) -> str:
        """For people."""
        counts = {**self.notes.counts, **self.misfortunes}
        lines = [f"{self.seconds:.0f} s: " + ", ".join(f"{count} {what}" for what, count in counts.items())]
        lines.append(
            f"answered: {self.notes.answered_share():.2%}; agreed {self.calm_seconds:.1f} s after it"
        )
        lines += [f"warm request failed: {one}" for one in self.notes.failures[:20]]
        return "\n".join(lines + [f"FAULT {fault}" for fault in self.faults])


def storm(directory: Path, *, seconds: float, each: int, seed: int) -> Verdict:
    """So long, and each misfortune so often."""
    with namespaces(DAEMONS) as network:
        return asyncio.run(_storm(directory, network, seconds=seconds, each=each, seed=seed))


async def _storm(directory: Path, network: Namespaces, *, seconds: float, each: int, seed: int) -> Verdict:
    everywhere = {MODEL: range(DAEMONS)}
    fake = {"token_seconds": TOKEN_SECONDS}
    async with fleet(directory, DAEMONS, SETTINGS, network=network, models=everywhere, fake=fake) as group:
        await group.settled(DAEMONS)
        await group.warm(MODEL)
        begun = time.monotonic()
        notes, nemesis = Notes(), Nemesis(group, seed)
        stop = asyncio.Event()
        clients = [asyncio.create_task(client.run(stop)) for client in _clients(group, notes, seed)]
        try:
            await nemesis.run(seconds, each)
        finally:
            stop.set()
            await asyncio.gather(*clients)
        lasted = time.monotonic() - begun
        calm_begun = time.monotonic()
        await group.settled(DAEMONS, seconds=CALM_SECONDS)
        final = await _final(group, notes)
        verdict = Verdict(lasted, notes, nemesis.counts, time.monotonic() - calm_begun)
        _judge(verdict, final, each)
        return verdict


def _clients(group: Fleet, notes: Notes, seed: int) -> list[CatalogueClient | WarmClient]:
    pause = CATALOGUE_CLIENTS / OPERATIONS_PER_SECOND
    catalogue = [
        CatalogueClient(group, notes, f"c{seed}.{number}", pause) for number in range(CATALOGUE_CLIENTS)
    ]
    pause = WARM_CLIENTS / REQUESTS_PER_SECOND
    warm = [WarmClient(group, notes, f"w{seed}.{number}", MODEL, pause) for number in range(WARM_CLIENTS)]
    return [*catalogue, *warm]


async def _final(group: Fleet, notes: Notes) -> dict[str, Written | None]:
    """Every key through every daemon: reads that belong to the history, and must agree."""
    reader = CatalogueClient(group, notes, "final", 0.0)
    final: dict[str, Written | None] = {}
    for key in (f"key{number}" for number in range(KEYS)):
        found = [await reader.read(key, daemon) for daemon in group.daemons]
        assert all(one == found[0] for one in found), f"{key} differs: {found}"
        final[key] = found[0]
    return final


def _judge(verdict: Verdict, final: dict[str, Written | None], each: int) -> None:
    notes = verdict.notes
    verdict.faults += lost_writes(notes, final)
    wrong = explain(notes.history)
    if wrong is not None:
        verdict.faults.append(wrong)
    if notes.answered_share() < ANSWERED_MIN:
        verdict.faults.append(f"only {notes.answered_share():.2%} of warm requests were answered")
    verdict.faults += [
        f"only {verdict.misfortunes[kind]} {kind}" for kind in KINDS if verdict.misfortunes[kind] < each
    ]


def main() -> int:
    """0: survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where logs stay")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = given.keep or Path(temporary)
        verdict = storm(directory, seconds=given.seconds, each=given.each, seed=given.seed)
    sys.stdout.write(verdict.text() + "\n")
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())

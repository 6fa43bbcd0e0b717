"""What the simulators show: how fast gossip spreads, who dies falsely, and whether raft's rules hold.

The machines are the daemon's own; clock, network and disk are simulated (``tests/simulation``), so these
figures are seconds of virtual time, and counts. Worlds run in as many processes as there are cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.report import Goal, Report
from sllmd.cluster.raft import Raft
from tests.simulation.gossip import after_a_pause, seconds_until_all_know
from tests.simulation.mutants import DIRECTED, HOSTS
from tests.simulation.test_directed import SCHEDULES
from tests.simulation.test_mutants import SEEDS
from tests.simulation.world import Violation, play

GOALS = (
    Goal("cluster.gossip_s_5000", "s", "<=", 3),
    Goal("cluster.false_deaths", "deaths", "<=", 0),
    Goal("cluster.mutants_alive", "mutants", "<=", 0),
)
SIZES = (1000, 5000)
LOSSES = (0.0, 0.25)
PAUSED_MEMBERS = 1000
SEEDS_PER_TASK = 20


def measure(report: Report, options: Options) -> None:
    """Gossip of both sizes and losses, pauses, then seeds and planted bugs of raft."""
    pool = ProcessPoolExecutor(os.cpu_count())
    try:
        _gossip(report, options.rounds, pool)
        _raft(report, options.seeds, pool)
    finally:
        pool.shutdown(cancel_futures=True)  # who stops a bench does not wait for all that was asked


def _gossip(report: Report, rounds: int, pool: ProcessPoolExecutor) -> None:
    """Seconds until the last member has heard; the worse loss counts. Deaths of any are false."""
    cases = list(product(SIZES, LOSSES))
    asked = {case: [pool.submit(_spread, *case, seed) for seed in range(rounds)] for case in cases}
    paused = {loss: [pool.submit(_deaths, loss, seed) for seed in range(rounds)] for loss in LOSSES}
    worst: dict[int, float] = {}
    for (members, loss), tasks in asked.items():
        found = [task.result() for task in tasks]
        report.row(f"gossip: {members} members, {loss:.0%} loss: all know", found, "s")
        if members == max(SIZES):
            worst = {seed: max(worst.get(seed, 0.0), seconds) for seed, seconds in enumerate(found)}
    report.value("cluster.gossip_s_5000", list(worst.values()), rounds)
    deaths = 0
    for loss, tasks in paused.items():
        counts = [task.result() for task in tasks]
        report.row(f"gossip: a tenth of {PAUSED_MEMBERS} paused 5 s, {loss:.0%} loss", counts, "deaths")
        deaths += sum(counts)
    report.value("cluster.false_deaths", [deaths], 1)


def _spread(members: int, loss: float, seed: int) -> float:
    return seconds_until_all_know(members, loss, seed)[0]


def _deaths(loss: float, seed: int) -> int:
    return len(after_a_pause(PAUSED_MEMBERS, loss, seed).deaths)


def _raft(report: Report, seeds: int, pool: ProcessPoolExecutor) -> None:
    """A seed that fails is a fault of the product: no planted bug is told from it, so the goal is missed."""
    starts = range(0, seeds, SEEDS_PER_TASK)
    violations = [
        violation
        for found in pool.map(_violations, starts, [min(SEEDS_PER_TASK, seeds - at) for at in starts])
        for violation in found
    ]
    for violation in violations:
        log(violation)
    report.row("raft: seeds", [seeds], "seeds")
    report.row("raft: seeds with a violation", [len(violations)], "seeds")
    alive = [name for name, found in zip(HOSTS, pool.map(_is_found, HOSTS), strict=True) if not found]
    alive += list(_undirected())
    for name in alive:
        log(f"the planted bug {name} was not found")
    report.row("raft: planted bugs", [len(HOSTS) + len(DIRECTED)], "mutants")
    if not violations:
        report.value("cluster.mutants_alive", [len(alive)], 1)


def _violations(first: int, count: int) -> list[str]:
    found = [_violation(partial(play, seed)) for seed in range(first, first + count)]
    return [said for said in found if said]


def _is_found(name: str) -> bool:
    return any(_violation(partial(play, seed, host_class=HOSTS[name])) for seed in range(SEEDS))


def _violation(run: Callable[[], object]) -> str:
    """What was violated; empty if nothing was."""
    try:
        run()
    except Violation as violation:
        return str(violation)
    return ""


def _undirected() -> Iterator[str]:
    """Planted bugs that their schedule does not find, and schedules that the product does not survive."""
    for name, schedule in SCHEDULES.items():
        schedule(Raft)
        try:
            schedule(DIRECTED[name])
        except AssertionError:
            continue
        yield name

"""Look at one seed, or hunt through many."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.host import Host
from tests.simulation.mutants import HOSTS
from tests.simulation.world import Violation, play, storm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--mutant", choices=sorted(HOSTS))
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    host_class = HOSTS[options.mutant] if options.mutant else Host
    begun, events, acknowledged, failed = time.perf_counter(), 0, 0, 0
    for seed in range(options.seed, options.seed + options.count):
        try:
            world = play(seed, storm, host_class=host_class, trace=options.trace)
        except Violation as violation:
            failed += 1
            sys.stdout.write(f"{violation}\n")
        else:
            events, acknowledged = events + world.events, acknowledged + world.acknowledged
    seconds = time.perf_counter() - begun
    sys.stdout.write(
        f"{options.count} seeds, {failed} failed, {events} events, {acknowledged} acknowledged writes, "
        f"{seconds:.1f} s, {events / seconds:.0f} events/s\n"
    )


if __name__ == "__main__":
    main()

"""The paper's figure of section 5, with real processes: B is wanted where A runs.

``near`` has one device, and A answers on it; B's checkpoint is on its disk and on no other server's. ``far``
has a device free, A's checkpoint in DRAM, and B only from a storage server. While A answers, somebody asks
for B. There are four ways to serve them (``ways``), tried at three lengths of A's context. Each is judged by
the sum of what both wait: from the order to B's first token, and how much later than undisturbed A's tokens
come, token by token against the same answer of the same round with nobody else there.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.migration.scene import Scene, scene
from benchmarks.migration.stage import OPEN, Heard, listen, tokens_come
from benchmarks.migration.ways import WAYS, Way
from benchmarks.report import Goal, Report, rotated

GOALS = (Goal("migration.paper_rank", "rank", "<=", 1),)
CONTEXTS = (256, 1000, 4000)
TOKENS, KNOWN_TOKENS = 8000, 500
"""Of A's answer in all, and when B is asked for: A has some seconds left then, as a large model has in the
middle of an answer of a few hundred tokens."""
SETTLED_TOKENS = 300
"""A is listened to for so many tokens after the order, and after B's first token for a few."""
TIE = 0.1
"""Sums that differ by less, as a share of the smaller one, are equal: rounds scatter as much."""

Sums = Mapping[str, Sequence[float]]
"""By way, of each round: seconds."""


def measure(report: Report, options: Options) -> None:
    """Every way at every length in every round, in turn."""
    sums: dict[int, dict[str, list[float]]] = {context: defaultdict(list) for context in CONTEXTS}
    parts: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    with scene() as here:
        for number in range(options.rounds):
            for context in CONTEXTS:
                alone = asyncio.run(_alone(here, context))
                for name in rotated(list(WAYS), number):
                    first_seconds, added_seconds = asyncio.run(_contest(here, WAYS[name], context, alone))
                    log(f"paper: {context} {name}: B {first_seconds:.3f} s, A {added_seconds:+.3f} s")
                    sums[context][name].append(first_seconds + added_seconds)
                    parts[context, name].append((first_seconds, added_seconds))
    for (context, name), found in parts.items():
        firsts, added = ([each[part] * 1000 for each in found] for part in (0, 1))
        report.row(f"{name} at {context}: B's first token", firsts, "ms")
        report.row(f"{name} at {context}: A's added latency", added, "ms")
    ranks = [rank(each, "migration") for each in sums.values()]
    report.row("migration's rank at each context", ranks, "rank", rounds_each=options.rounds)
    report.value("migration.paper_rank", [max(ranks)], 1)


def rank(sums: Sums, ours: str) -> int:
    """1, and one more for each other way whose median is smaller than a tie allows."""
    mine = statistics.median(sums[ours])
    others = [statistics.median(found) for name, found in sums.items() if name != ours]
    return 1 + sum(other * (1 + TIE) < mine for other in others)


async def _alone(here: Scene, context: int) -> Heard:
    """A's answer with nobody else there."""
    await asyncio.to_thread(here.prepare)
    return await _ask(here, _plan(context), context)


async def _contest(here: Scene, way: Way, context: int, alone: Heard) -> tuple[float, float]:
    """Seconds to B's first token, and how much later A's tokens came."""
    await asyncio.to_thread(here.prepare)
    heard = _plan(context)
    stream = asyncio.create_task(_ask(here, heard, context))
    await tokens_come([heard], KNOWN_TOKENS)
    known = len(heard.came)
    ordered_seconds, first_seconds = await way(here, heard.request_id)
    settled = max(known + SETTLED_TOKENS, len(heard.came) + SETTLED_TOKENS // 6)
    await tokens_come([heard], min(settled, TOKENS))
    if heard.error not in (None, OPEN):
        raise RuntimeError(f"A's answer broke: {heard.error}")
    added_seconds = later_seconds(heard.came, alone.came, known)
    stream.cancel()
    await asyncio.wait([stream])
    await asyncio.to_thread(here.forget_b)
    return first_seconds - ordered_seconds, added_seconds


def later_seconds(came: Sequence[float], alone: Sequence[float], known: int) -> float:
    """How much longer the tokens since the ``known`` first took than those of an undisturbed answer."""
    last = min(len(came), len(alone)) - 1
    return (came[last] - came[known - 1]) - (alone[last] - alone[known - 1])


def _plan(context: int) -> Heard:
    return Heard("", context, 1.0)


async def _ask(here: Scene, heard: Heard, context: int) -> Heard:
    prompt = [97 + (position * position + context) % 26 for position in range(context)]
    await listen(here.router.live.url, heard, tokens=TOKENS, prompt=prompt, timed_only=True)
    if heard.error is not None:
        raise RuntimeError(f"A's answer broke: {heard.error}")
    return heard

"""What the rounds of a move cost the stream that they are for.

One machine plays both servers, so that any prefill at the target slows the source down a little. What counts
is what a move adds: the source's tokens/s while the target computes its generation, over its tokens/s right
before, beside a prefill of as many tokens at the same target that has nothing to do with it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.migration.stage import OPEN, Heard, Server, ends, listen, move, new_prompt, stage, tokens_come
from benchmarks.report import Goal, Report
from tests.waiting import until

GOALS = (Goal("migration.source_ratio", "ratio", ">=", 0.9),)
CONTEXT, TOKENS = 4000, 4000
MOVES = 3
"""Streams of a round, each moved once, to where nobody has seen it."""
BETWEEN_TOKENS = 150
"""Let pass before each prefill, so that nothing of the last one is left."""
WINDOW_TOKENS_MIN = 20
"""With fewer a rate says nothing."""


def measure(report: Report, options: Options) -> None:
    """One move after the other."""
    chance = random.Random(3)
    ratios: list[float] = []
    with stage() as (a, b, router):
        for _move in range(options.rounds * MOVES):
            beside, during = asyncio.run(_rates(router, (a, b), chance))
            log(f"source: {beside:.0f} tokens/s beside a prefill, {during:.0f} in its rounds")
            ratios.append(during / beside)
            until(lambda: not a.running + b.running, "the stream is gone from both")
    report.row("source during rounds over beside a prefill", ratios, "ratio")
    report.value("migration.source_ratio", ratios, options.rounds * MOVES)


async def _rates(
    router: Server, servers: tuple[Server, Server], chance: random.Random
) -> tuple[float, float]:
    """Of one stream: tokens/s beside an unrelated prefill, and during its own rounds."""
    heard = Heard("", chance.randrange(1000), 1.0)
    prompt = new_prompt(CONTEXT, chance)
    stream = asyncio.create_task(listen(router.live.url, heard, tokens=TOKENS, prompt=prompt))
    await tokens_come([heard], BETWEEN_TOKENS)
    _, target = await ends(servers)
    beside = tokens_per_second(heard.came, *await _prefill(target, CONTEXT + len(heard.came), chance))
    await tokens_come([heard], len(heard.came) + BETWEEN_TOKENS)
    sent_seconds = time.monotonic()
    status = await move(router, heard.request_id, target.name)
    if status is None or status["result"] != "done" or heard.error not in (None, OPEN):
        raise RuntimeError(f"the stream did not move: {status}, {heard.error}")
    committed_seconds = sent_seconds + status["seconds"] - status["pause_ms"] / 1000
    during = tokens_per_second(heard.came, sent_seconds, committed_seconds)
    stream.cancel()
    await asyncio.wait([stream])
    return beside, during


async def _prefill(target: Server, tokens: int, chance: random.Random) -> tuple[float, float]:
    """Have the target compute a prompt; when it was asked, and when that was done."""
    unrelated = Heard("", 1, 0.0)
    sent_seconds = time.monotonic()
    await listen(target.live.url, unrelated, tokens=1, prompt=new_prompt(tokens, chance))
    if unrelated.error is not None:
        raise RuntimeError(f"a prefill that nothing disturbs failed: {unrelated.error}")
    return sent_seconds, unrelated.came[0]


def tokens_per_second(came: Sequence[float], begin: float, end: float) -> float:
    """Of the tokens of this time. Raises ValueError when they are too few to tell."""
    count = sum(begin <= moment < end for moment in came)
    if count < WINDOW_TOKENS_MIN:
        raise ValueError(f"{count} tokens in {end - begin:.3f} s tell no rate")
    return count / (end - begin)

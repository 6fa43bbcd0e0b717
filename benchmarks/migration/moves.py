"""A planned move between two daemons: what its client sees of it, and the bytes that travel.

The target has the model loaded and has never seen these tokens, so that it computes all of them; the source
is killed right after the commit. The pause is the longest silence from the order on, in steps of the same
stream before it.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from itertools import pairwise

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.migration.stage import (
    MODEL,
    Heard,
    Server,
    ends,
    listen,
    move,
    new_prompt,
    stage,
    tokens_come,
)
from benchmarks.report import Goal, Report
from sllmd.core.ids import Digest, GenerationId, ModelName, RequestId
from sllmd.engine.protocol import GenerationState, Sampling
from sllmd.roles.transcript import pack_ids, pack_work
from sllmd.roles.work import Work
from sllmd.wire.codec import pack_payload

GOALS = (
    Goal("migration.pause_steps_p50", "steps", "<=", 2),
    Goal("migration.pause_steps_p99", "steps", "<=", 4),
    Goal("migration.bytes_per_token", "B", "<=", 8),
)
CONTEXTS = (256, 1000, 4000)
TOKENS = 4000
"""Enough for what is left at any of these moments to take longer than computing 8,000: else there is nothing
to gain, and the move is called off."""
ALLOWED_P50_MS, ALLOWED_P99_MS = 20, 50
"""Beside the steps: the targets' own allowance."""
MOVE_BYTES = 2000


def measure(report: Report, options: Options) -> None:
    """A move of each context, in every round; the source comes back for the next."""
    chance = random.Random(2)
    p50: list[float] = []
    p99: list[float] = []
    with stage() as (a, b, router):
        for _round in range(options.rounds):
            for context in CONTEXTS:
                source, moved = asyncio.run(_move(router, (a, b), context, chance))
                source.kill()
                source.start()
                source.load()
                if moved is None:
                    continue
                pause_ms, step_ms, rounds = moved
                report.row(
                    f"pause at {context} tokens", [pause_ms], "ms", step_ms=step_ms, rounds_of_move=rounds
                )
                p50.append(max(0.0, pause_ms - ALLOWED_P50_MS) / step_ms)
                p99.append(max(0.0, pause_ms - ALLOWED_P99_MS) / step_ms)
    moves = options.rounds * len(CONTEXTS)
    report.value("migration.pause_steps_p50", p50, moves)
    if len(p99) >= moves:
        report.value("migration.pause_steps_p99", [max(p99)], 1)
    report.value("migration.bytes_per_token", [max(map(_bytes_per_token, CONTEXTS))], 1)


async def _move(
    router: Server, servers: tuple[Server, Server], context: int, chance: random.Random
) -> tuple[Server, tuple[float, float, int] | None]:
    """The source, which is dead; pause and step in ms, and the move's rounds. None: it did not come about."""
    heard = Heard("", context, 1.0)
    prompt = new_prompt(context, chance)
    task = asyncio.create_task(listen(router.live.url, heard, tokens=TOKENS, prompt=prompt))
    await tokens_come([heard], int(TOKENS * chance.uniform(0.25, 0.7)))
    source, target = await ends(servers)
    position = len(heard.came)
    status = await move(router, heard.request_id, target.name)
    source.live.process.kill()
    await task
    if heard.error is not None or status is None or status["result"] != "done":
        log(f"move at {context} tokens: {heard.error or status}")
        return source, None
    if status["tokens"] < context + position:
        raise RuntimeError(f"the target went on from {status['tokens']} tokens")
    times = heard.came
    steps = [later - earlier for earlier, later in pairwise(times[:position])]
    pause_seconds = max(later - earlier for earlier, later in pairwise(times[position - 1 :]))
    return source, (pause_seconds * 1000, statistics.median(steps) * 1000, int(status["rounds"]))


def _bytes_per_token(tokens: int) -> float:
    """Of the messages of a move with that much known, a hundred tokens of it in later rounds, as packed."""
    state = GenerationState(GenerationId("0" * 32), [200] * (tokens - 100), Sampling(1, 100), [])
    work = Work(RequestId("req_" + "0" * 32), ModelName(MODEL), Digest("0" * 32), state)
    held = pack_payload(("0" * 32, pack_work(work)), 1 << 24)
    warmed = pack_payload(("0" * 32, 0, pack_ids([200] * 90)), 1 << 24)
    committed = pack_payload(("0" * 32, 90, pack_ids([200] * 10)), 1 << 24)
    return max(0, len(held) + len(warmed) + len(committed) - MOVE_BYTES) / tokens

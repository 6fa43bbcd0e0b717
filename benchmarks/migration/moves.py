"""A planned move between two daemons: what its client sees of it, and the bytes that travel.

The client's node is the target, which has the model loaded; the source is killed right after the commit. The
pause is the longest silence from the order on, in steps of the same stream before it.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from itertools import pairwise

import aiohttp

from benchmarks.cluster.options import Options
from benchmarks.environments import log
from benchmarks.migration.stage import MODEL, Heard, Server, listen, stage, tokens_come
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
TOKENS = 1500
ALLOWED_P50_MS, ALLOWED_P99_MS = 20, 50
"""Beside the steps: the targets' own allowance."""
MOVE_BYTES = 2000


def measure(report: Report, options: Options) -> None:
    """A move of each context, in every round; the source comes back for the next."""
    chance = random.Random(2)
    p50: list[float] = []
    p99: list[float] = []
    with stage() as (a, b, _):
        for _round in range(options.rounds):
            for context in CONTEXTS:
                moved = asyncio.run(_move(a, b, context, chance))
                a.kill()
                a.start()
                a.load()
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


async def _move(a: Server, b: Server, context: int, chance: random.Random) -> tuple[float, float, int] | None:
    """Pause and step in ms, and the move's rounds; None: it did not come about."""
    heard = Heard("", context, 1.0)
    prompt = [chance.randrange(97, 123) for _ in range(context)]
    task = asyncio.create_task(listen(b.live.url, heard, tokens=TOKENS, prompt=prompt))
    await tokens_come([heard], 5)
    begun = await _order(b, heard.request_id, "a")  # it began where its client is
    if begun is None or begun["result"] != "done":
        log(f"away from the client's node at {context} tokens: {begun}")
        task.cancel()
        await asyncio.wait([task])
        return None
    await tokens_come([heard], int(TOKENS * chance.uniform(0.4, 0.6)))
    position = len(heard.came)
    status = await _order(b, heard.request_id, "b")
    a.live.process.kill()
    await task
    if heard.error is not None or status is None or status["result"] != "done":
        log(f"move at {context} tokens: {heard.error or status}")
        return None
    times = heard.came
    steps = [later - earlier for earlier, later in pairwise(times[:position])]
    after = times[max(0, position - 1) :]
    pause_seconds = max(later - earlier for earlier, later in pairwise(after))
    return pause_seconds * 1000, statistics.median(steps) * 1000, int(status["rounds"])


async def _order(router: Server, request_id: str, to: str) -> dict[str, object] | None:
    async with aiohttp.ClientSession() as session:
        path = f"/sllmd/v1/requests/{request_id}/migrate"
        async with session.post(router.live.url + path, json={"to": to}) as response:
            body = await response.json()
    generations = body.get("generations") or []
    return generations[0]["move"] if generations else None


def _bytes_per_token(tokens: int) -> float:
    """Of the messages of a move with that much known, a hundred tokens of it in later rounds, as packed."""
    state = GenerationState(GenerationId("0" * 32), [200] * (tokens - 100), Sampling(1, 100), [])
    work = Work(RequestId("req_" + "0" * 32), ModelName(MODEL), Digest("0" * 32), state)
    held = pack_payload(("0" * 32, pack_work(work)), 1 << 24)
    warmed = pack_payload(("0" * 32, 0, pack_ids([200] * 90)), 1 << 24)
    committed = pack_payload(("0" * 32, 90, pack_ids([200] * 10)), 1 << 24)
    return max(0, len(held) + len(warmed) + len(committed) - MOVE_BYTES) / tokens

"""The engine loop alone in one process: what is left without HTTP, router and the worker's pipe.

Run as a program: loads the model like a node does, runs the same batches as the client, prints tokens per
second by concurrency as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

from benchmarks.prompts import token_ids
from benchmarks.store import bench_store
from sllmd.core.ids import GenerationId
from sllmd.engine.memory import map_partitions
from sllmd.engine.protocol import Engine, EngineOptions, GenerationState, Sampling, TokenEvent
from sllmd.engine.transformer import build_engine
from sllmd.engine.weights import Weights
from sllmd.loader.settings import LoaderSettings
from sllmd.loader.tier import DramTier

PREPACK_SECONDS = 60.0
"""For the fast path to be proven and laid out, which goes on beside the first tokens."""


async def measure(
    model: str,
    *,
    threads: int,
    concurrencies: list[int],
    prompt_tokens: int,
    new_tokens: int,
    batches: int,
    seed: str,
) -> dict[str, object]:
    """Build the engine over the DRAM tier's memory and time some batches per concurrency."""
    store = bench_store()
    checkpoint = store.resolve(model)
    tier = DramTier(LoaderSettings(), quarantine=store.quarantine, complete_remote=store.complete_remote)
    lease = tier.acquire(checkpoint)
    await lease.loaded()
    mapped = map_partitions(lease.memory)
    for partition in mapped:
        partition.populate(0, partition.span_bytes)
    weights = Weights.over_memory(checkpoint.manifest, [partition.buffer() for partition in mapped])
    engine = build_engine(checkpoint.manifest, weights, EngineOptions(threads=threads))
    _until_prepacked(engine, prompt_tokens)
    found = {
        str(concurrency): statistics.median(
            _batch(engine, concurrency, prompt_tokens, new_tokens, f"{seed}-{concurrency}-{repeat}")
            for repeat in range(batches)
        )
        for concurrency in concurrencies
    }
    return {"tokens_per_s": found, "runner": engine.stats().runner, "threads": engine.stats().threads}


def _until_prepacked(engine: Engine, prompt_tokens: int) -> None:
    """Serve until the fastest forward has taken over. Raises RuntimeError when it does not."""
    deadline = time.monotonic() + PREPACK_SECONDS
    while (runner := engine.stats().runner) != "prepacked":
        if time.monotonic() > deadline:
            raise RuntimeError(f"after {PREPACK_SECONDS:.0f} s the engine still runs {runner}")
        _batch(engine, 1, prompt_tokens, 8, f"warm-{time.monotonic()}")


def _batch(engine: Engine, concurrency: int, prompt_tokens: int, new_tokens: int, seed: str) -> float:
    """Tokens per second of ``concurrency`` generations that begin together."""
    sampling = Sampling(seed=1, max_tokens=new_tokens, temperature=0.0)
    begin = time.perf_counter()
    for index in range(concurrency):
        prompt = token_ids(prompt_tokens, f"{seed}-{index}")
        engine.add(GenerationState(GenerationId(f"{seed}-{index}"), prompt, sampling))
    tokens = finished = 0
    while finished < concurrency:
        for event in engine.step():
            if isinstance(event, TokenEvent):
                tokens += 1
                finished += event.finish_reason is not None
    seconds = time.perf_counter() - begin
    if tokens != concurrency * new_tokens:
        raise RuntimeError(f"{tokens} tokens instead of {concurrency * new_tokens}")
    return tokens / seconds


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--concurrency", type=int, nargs="+", required=True)
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--batches", type=int, required=True)
    parser.add_argument("--seed", required=True)
    given = parser.parse_args()
    found = asyncio.run(
        measure(
            given.model,
            threads=given.threads,
            concurrencies=given.concurrency,
            prompt_tokens=given.prompt_tokens,
            new_tokens=given.new_tokens,
            batches=given.batches,
            seed=given.seed,
        )
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""The engine loop alone in one process: what is left without HTTP, router and the worker's pipe.

Run as a program it loads the model like a node does, then runs the client's batches as they are asked for:
JSON lines in, JSON lines out. ``BareEngine`` is the asker's side.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO

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


class BareEngine:
    """The program in a process of its own, ready for batches; a context manager that ends it."""

    def __init__(self, model: str, *, threads: int, prompt_tokens: int, new_tokens: int) -> None:
        command = [sys.executable, "-m", "benchmarks.bare_engine", model, "--threads", str(threads)]
        command += ["--prompt-tokens", str(prompt_tokens), "--new-tokens", str(new_tokens)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        self._answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def batch(self, concurrency: int, seed: str) -> float:
        """Tokens per second of so many generations that begin together. Raises RuntimeError."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"concurrency": concurrency, "seed": seed}) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["tokens_per_s"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()  # it has ended, or is about to
            raise RuntimeError(f"the bare engine ended with exit code {self._process.returncode}; see stderr")
        answer: dict[str, Any] = json.loads(line)
        return answer


async def serve_batches(
    model: str, answers: TextIO, *, threads: int, prompt_tokens: int, new_tokens: int
) -> None:
    """Build the engine over the DRAM tier's memory, say so, then run one batch for each line of stdin."""
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
    _say(answers, runner=engine.stats().runner, threads=engine.stats().threads)
    for line in sys.stdin:
        asked = json.loads(line)
        found = _batch(engine, asked["concurrency"], prompt_tokens, new_tokens, asked["seed"])
        _say(answers, tokens_per_s=found)


def _say(answers: TextIO, **answer: object) -> None:
    print(json.dumps(answer), file=answers, flush=True)


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
    """Parse, then serve; what is logged goes to stderr."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    given = parser.parse_args()
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        asyncio.run(
            serve_batches(
                given.model,
                answers,
                threads=given.threads,
                prompt_tokens=given.prompt_tokens,
                new_tokens=given.new_tokens,
            )
        )


if __name__ == "__main__":
    main()

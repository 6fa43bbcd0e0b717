"""Ray Serve as its documentation shows it, its delays the shortest it takes. Run in the environment ``ray``.

Three ways to serve two models on one slot: two applications that scale from zero and contend for it
(``/a``, ``/b``), and one replica that multiplexes them in its process (``/mux``). Speaks the same
completions stream as everybody else here. Prints ``ready`` when all is deployed; SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import threading
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse


class Model:
    """A transformers model that streams."""

    def __init__(self, path: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)

    def stream(self, body: dict) -> Iterator[str]:
        """Server-sent events, one per token, as soon as it is there."""
        inputs = self.tokenizer(body["prompt"], return_tensors="pt")
        tokens = TokenQueue()
        arguments = dict(
            **inputs,
            max_new_tokens=body["max_tokens"],
            min_new_tokens=body["max_tokens"],
            do_sample=False,
            streamer=tokens,
        )
        threading.Thread(target=self.model.generate, kwargs=arguments, daemon=True).start()
        count = 0
        while (token := tokens.get()) is not None:
            count += 1
            text = self.tokenizer.decode([token])
            yield _event({"choices": [{"index": 0, "text": text, "finish_reason": None}]})
        yield _event({"choices": [], "usage": {"completion_tokens": count}})
        yield "data: [DONE]\n\n"


class TokenQueue:
    """A transformers streamer without its wait for the end of a word."""

    def __init__(self) -> None:
        self._queue: queue.Queue = queue.Queue()
        self._prompt_seen = False
        self.get = self._queue.get

    def put(self, value: Any) -> None:
        """Token ids; the first call brings the prompt."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.flatten().tolist():
            self._queue.put(token)

    def end(self) -> None:
        """No more."""
        self._queue.put(None)


@serve.deployment(
    max_ongoing_requests=32,
    ray_actor_options={"num_cpus": 1},
    graceful_shutdown_wait_loop_s=0.1,
    autoscaling_config={
        "min_replicas": 0,
        "initial_replicas": 0,
        "max_replicas": 1,
        "target_ongoing_requests": 16,
        "metrics_interval_s": 0.1,
        "look_back_period_s": 0.2,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
        "downscale_to_zero_delay_s": 0,
    },
)
class FromZero:
    """One model per application."""

    def __init__(self, path: str) -> None:
        self.model = Model(path)

    async def __call__(self, request: Request) -> StreamingResponse:
        return StreamingResponse(self.model.stream(await request.json()), media_type="text/event-stream")


@serve.deployment(max_ongoing_requests=32, ray_actor_options={"num_cpus": 0})
class Multiplexed:
    """Both models in one process, one at a time."""

    def __init__(self, paths: dict[str, str]) -> None:
        import torch  # noqa: F401  (a warm process: that is what multiplexing is for)
        import transformers  # noqa: F401

        self.paths = paths

    @serve.multiplexed(max_num_models_per_replica=1)
    async def load(self, name: str) -> Model:
        return Model(self.paths[name])

    async def __call__(self, request: Request) -> StreamingResponse:
        model = await self.load(serve.get_multiplexed_model_id())
        return StreamingResponse(model.stream(await request.json()), media_type="text/event-stream")


def _event(chunk: dict) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def main() -> None:
    """Deploy, say so, wait for the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("a")
    parser.add_argument("b")
    given = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=200_000_000, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    serve.run(FromZero.bind(given.a), name="a", route_prefix="/a")
    serve.run(FromZero.bind(given.b), name="b", route_prefix="/b")
    serve.run(Multiplexed.bind({"a": given.a, "b": given.b}), name="mux", route_prefix="/mux")
    print("ready", flush=True)
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()

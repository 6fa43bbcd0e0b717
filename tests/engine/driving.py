"""Running an engine to its end, and what transformers itself would say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sllmd.core.ids import GenerationId
from sllmd.engine.protocol import Engine, EngineEvent, FailedEvent, GenerationState, Sampling, TokenEvent


def state(
    name: str, prompt: Sequence[int], max_tokens: int = 12, output: Sequence[int] = (), **sampling: Any
) -> GenerationState:
    rules = Sampling(**{"seed": 1, "max_tokens": max_tokens, "temperature": 0.0, **sampling})
    return GenerationState(GenerationId(name), list(prompt), rules, list(output))


def drain(engine: Engine, steps_max: int = 1000) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    for _ in range(steps_max):
        if not engine.has_work():
            return events
        events += engine.step()
    raise AssertionError("the engine does not come to an end")


def outputs(events: Sequence[EngineEvent]) -> dict[str, list[int]]:
    """Tokens by generation; a generation may begin anywhere, but skips nothing."""
    tokens: dict[str, list[int]] = {}
    following: dict[str, int] = {}
    for event in events:
        assert not isinstance(event, FailedEvent), event
        if isinstance(event, TokenEvent):
            assert event.index == following.get(event.generation_id, event.index)
            following[event.generation_id] = event.index + 1
            tokens.setdefault(event.generation_id, []).append(event.token_id)
    return tokens


def reference(model: Any, prompt: Sequence[int], max_tokens: int = 12) -> list[int]:
    """What ``generate`` gives greedily."""
    ids = torch.tensor([list(prompt)])
    with torch.no_grad():
        full = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return full[0, len(prompt) :].tolist()


def prompts(lengths: Sequence[int], vocabulary: int, seed: int = 3) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths]

"""Running an engine to its end, and what transformers itself would say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from sllmd.core.ids import GenerationId
from sllmd.engine.noise import gumbel_window
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


def runner_up_gap(model: Any, given: GenerationState) -> float:
    """How far the drawn token of ``given``'s next position is above the second, in units of the noise."""
    with torch.no_grad():
        logits = model(torch.tensor([given.prompt_ids + given.output_ids])).logits[0, -1].float()
    noise = gumbel_window(given.sampling.seed, len(given.output_ids), logits.numel(), logits.device)
    best = (logits / given.sampling.temperature + noise).topk(2).values
    return float(best[0] - best[1])


def prompts(lengths: Sequence[int], vocabulary: int, seed: int = 3) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths]


def diverged(
    engine: Engine, forget: Callable[[], None], given: Sequence[GenerationState], moved_at: int
) -> list[GenerationState]:
    """Each run as it is, all together, and again from its token ``moved_at``, recomputed: where they part.

    One state for each that does: what both have said before. ``forget`` drops what the engine retains.
    """
    for one in given:
        engine.add(replace(one, output_ids=[]))
    whole = outputs(drain(engine))
    parted = []
    for one in given:
        forget()
        said = whole[one.generation_id]
        engine.add(replace(one, output_ids=said[:moved_at]))
        again = said[:moved_at] + outputs(drain(engine))[one.generation_id]
        assert len(again) == len(said)
        if again != said:
            first = next(i for i, (old, new) in enumerate(zip(said, again, strict=True)) if old != new)
            parted.append(replace(one, output_ids=said[:first]))
    return parted

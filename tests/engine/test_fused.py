"""The fused forward equals the model's own, packed and not, and takes over only then."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sllmd.engine import fused, upgrade
from sllmd.engine.cache import SlotCache
from sllmd.engine.fused import FusedRunner, is_fusible
from sllmd.engine.runner import Runner, Span, TransformersRunner
from sllmd.engine.skeleton import build_skeleton
from sllmd.engine.upgrade import Upgrade, relative_difference
from tests.engine.driving import drain, outputs, prompts, reference, state
from tests.engine.models import ARCHITECTURES, VOCABULARY, checkpoint, random_model

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama-biased": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "llama-wide-heads": ("LlamaForCausalLM", {"head_dim": 24, "num_key_value_heads": 4}),
    "llama-one-head": ("LlamaForCausalLM", {"num_key_value_heads": 1}),
    "llama-3-rope": (
        "LlamaForCausalLM",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {}),
}


def run_passes(runner: Runner) -> list[torch.Tensor]:
    """Prefill three rows of different lengths in chunks, then decode them together and two of them alone."""
    results = []
    for slot, prompt in enumerate(prompts((3, 70, 11), VOCABULARY)):
        tokens = torch.tensor([prompt])
        half = len(prompt) // 2
        results.append(runner.forward(slot, tokens[:, :half], [0]))
        results.append(runner.forward(slot, tokens[:, half:], [half], every_position=True))
    spans = [Span(0, 3, 4), Span(3, 0, 9), Span(1, 70, 2)]
    results.append(runner.prefill(spans, torch.tensor(prompts((15,), VOCABULARY, seed=9)[0])))
    following = torch.tensor([[5], [6], [7]])
    results.append(runner.forward(0, following, [7, 72, 11]))
    results.append(runner.forward(0, following[:1], [8]))
    results.append(runner.forward(1, following[:2], [73, 12]))
    return results


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("keys_min", [0, 600], ids=["products", "kernel"])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_logits_equal_the_models_own(
    variant: str, packed: bool, keys_min: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_PRODUCTS_FROM_KEYS", keys_min)
    architecture, changes = VARIANTS[variant]
    model = random_model(architecture, **changes)
    own = checkpoint(model).engine()._upgrade._model
    assert is_fusible(own)
    layers = own.config.num_hidden_layers
    with torch.inference_mode():
        expected = run_passes(TransformersRunner(own, SlotCache(layers, slots=4, capacity=64)))
        runner = FusedRunner(own, SlotCache(layers, slots=4, capacity=64))
        if packed:
            runner.pack()
        given = run_passes(runner)
    for wanted, got in zip(expected, given, strict=True):
        assert wanted.shape == got.shape
        assert relative_difference(wanted, got) < 1e-5


NOT_FUSIBLE: dict[str, tuple[str, dict[str, Any]]] = {
    "other family": ("GPTNeoXForCausalLM", {}),
    "experts": ("MixtralForCausalLM", {}),
    "window": ("MistralForCausalLM", {}),
    "window in some layers": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "other activation": ("LlamaForCausalLM", {"hidden_act": "gelu"}),
    "rope that depends on the longest row": (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}},
    ),
}


@pytest.mark.parametrize("why", sorted(NOT_FUSIBLE))
def test_what_the_fused_forward_does_not_describe(why: str) -> None:
    architecture, changes = NOT_FUSIBLE[why]
    assert not is_fusible(random_model(architecture, **changes))


def test_several_devices_are_not_fused() -> None:
    model = checkpoint(random_model("LlamaForCausalLM")).engine()._upgrade._model
    spread = build_skeleton(checkpoint(model).manifest, torch.float32)
    spread.model.embed_tokens.weight = torch.nn.Parameter(model.model.embed_tokens.weight.clone())
    assert not is_fusible(spread)


class _Wrong(FusedRunner):
    """A forward that is almost right: it forgets the last layer's feed-forward part."""

    def __init__(self, model: Any, cache: SlotCache) -> None:
        super().__init__(model, cache)
        self._layers[-1].feed_forward = lambda hidden: hidden  # type: ignore[method-assign]


def test_a_wrong_forward_never_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "FusedRunner", _Wrong)
    model = checkpoint(random_model("LlamaForCausalLM"))
    engine = model.engine()
    (prompt,) = prompts((9,), VOCABULARY)
    engine.add(state("one", prompt))
    assert outputs(drain(engine))["one"] == reference(model.model, prompt)
    assert engine._upgrade._pieces is None
    assert engine.stats().runner == "transformers"


class _Broken(FusedRunner):
    def prefill(self, spans: Any, tokens: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("could not create a primitive")

    def forward(self, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        raise RuntimeError("could not create a primitive")


def test_a_forward_that_breaks_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "FusedRunner", _Broken)
    model = checkpoint(random_model("LlamaForCausalLM"))
    engine = model.engine()
    (prompt,) = prompts((9,), VOCABULARY)
    engine.add(state("one", prompt))
    assert outputs(drain(engine))["one"] == reference(model.model, prompt)
    assert engine._upgrade._pieces is None
    assert engine.stats().runner == "transformers"


def _finish(taking_over: Upgrade) -> str:
    with torch.inference_mode():
        while taking_over._pieces is not None:
            taking_over.advance()
    return taking_over.runner.name


@pytest.mark.parametrize(
    ("free_bytes", "enabled", "name"),
    [(10**9, True, "prepacked"), (1000, True, "fused"), (10**9, False, "transformers")],
)
def test_how_far_the_upgrade_goes(free_bytes: int, enabled: bool, name: str) -> None:
    model = checkpoint(random_model("LlamaForCausalLM")).engine()._upgrade._model
    cache = SlotCache(3, slots=2, capacity=64)
    taking_over = Upgrade(
        model,
        TransformersRunner(model, cache),
        cache=cache,
        slot=1,
        free_bytes=free_bytes,
        enabled=enabled,
    )
    assert _finish(taking_over) == name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_fusible_architecture_passes_the_probe(dtype: torch.dtype) -> None:
    for architecture in sorted(set(ARCHITECTURES) & fused._FAMILIES - {"MistralForCausalLM"}):
        engine = checkpoint(random_model(architecture, dtype)).engine()
        (prompt,) = prompts((9,), VOCABULARY)
        engine.add(state("one", prompt))
        drain(engine)
        _finish(engine._upgrade)
        assert engine.stats().runner == "prepacked", architecture

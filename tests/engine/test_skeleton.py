"""Checkpoints that do not fit their model, or are none that sllmd serves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import structlog
import torch

from sllmd.core.errors import MalformedCheckpoint, UnsupportedCheckpoint
from sllmd.engine.skeleton import build_skeleton
from sllmd.engine.weights import Weights
from tests.engine.driving import drain, outputs, prompts, reference, state
from tests.engine.models import VOCABULARY, InMemory, checkpoint, random_model


def test_the_skeleton_needs_no_memory() -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"))
    model = build_skeleton(stored.manifest, torch.float32)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model.model.rotary_emb.inv_freq, stored.model.model.rotary_emb.inv_freq)


def test_weights_are_not_copied() -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"))
    engine = stored.engine()
    base = torch.frombuffer(stored.buffers[0], dtype=torch.uint8).data_ptr()
    for name, parameter in engine._upgrade._model.named_parameters():
        assert base <= parameter.data_ptr() < base + len(stored.buffers[0]), name


def _changed(stored: InMemory, **changes: Any) -> InMemory:
    return InMemory(stored.manifest.model_copy(update=changes), stored.buffers, stored.model)


def test_a_missing_tensor_is_named() -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"))
    kept = tuple(t for t in stored.manifest.tensors if t.name != "model.layers.1.mlp.up_proj.weight")
    with pytest.raises(MalformedCheckpoint, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        _changed(stored, tensors=kept).engine()


def test_a_tensor_of_another_shape_is_named() -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"))
    wrong = tuple(
        t.model_copy(update={"shape": (t.shape[1], t.shape[0])})
        if t.name.endswith("2.mlp.up_proj.weight")
        else t
        for t in stored.manifest.tensors
    )
    with pytest.raises(MalformedCheckpoint, match=r"up_proj\.weight has shape \[64, 96\].*wants \[96, 64\]"):
        _changed(stored, tensors=wrong).engine()


@pytest.mark.parametrize(("dtype", "item_bytes"), [("I16", 2), ("F8_E4M3", 1)])
def test_codes_of_a_quantisation_are_no_numbers(dtype: str, item_bytes: int) -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"))
    wrong = tuple(
        t.model_copy(update={"dtype": dtype, "size_bytes": math.prod(t.shape) * item_bytes})
        if t.name.endswith("2.mlp.up_proj.weight")
        else t
        for t in stored.manifest.tensors
    )
    with pytest.raises(MalformedCheckpoint, match=r"up_proj\.weight holds torch\.\w+, .* wants torch\."):
        _changed(stored, tensors=wrong).engine()


def test_a_tensor_nobody_wants_is_logged_and_left_out() -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"))
    extra = stored.manifest.tensors[0].model_copy(update={"name": "model.layers.0.rotary.masked_bias"})
    with structlog.testing.capture_logs() as logs:
        engine = _changed(stored, tensors=(*stored.manifest.tensors, extra)).engine()
    assert [(entry["event"], entry["first"]) for entry in logs] == [("unexpected tensors", extra.name)]
    (prompt,) = prompts((9,), VOCABULARY)
    engine.add(state("one", prompt))
    assert outputs(drain(engine))["one"] == reference(stored.model, prompt)


def test_a_checkpoint_of_the_bare_decoder_fits_with_tied_embeddings() -> None:
    """Some checkpoints name their tensors without the ``model.`` that the generating class puts before."""
    stored = checkpoint(random_model("Qwen2ForCausalLM"))
    bare = tuple(
        t.model_copy(update={"name": t.name.removeprefix("model.")}) for t in stored.manifest.tensors
    )
    engine = _changed(stored, tensors=bare, ties={}).engine()
    (prompt,) = prompts((9,), VOCABULARY)
    engine.add(state("one", prompt))
    assert outputs(drain(engine))["one"] == reference(stored.model, prompt)


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("NoSuchModelForCausalLM", {}, "has no architecture NoSuchModelForCausalLM"),
        ("load_backbone", {}, "has no architecture load_backbone"),
        ("T5ForConditionalGeneration", {"model_type": "t5"}, "is an encoder-decoder"),
        ("BertModel", {"model_type": "bert"}, "does not generate text"),
        ("MambaForCausalLM", {"model_type": "mamba"}, "keeps a recurrent state"),
    ],
)
def test_what_is_not_served(architecture: str, config: dict[str, Any], message: str) -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"))
    with pytest.raises(UnsupportedCheckpoint, match=message):
        _changed(stored, architecture=architecture, config=config).engine()


def test_a_quantised_checkpoint_is_not_served() -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"))
    config = {**stored.manifest.config, "quantization_config": {"quant_method": "awq"}}
    with pytest.raises(UnsupportedCheckpoint, match="is quantised"):
        _changed(stored, config=config).engine()


def test_memory_of_another_model_is_refused() -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"))
    with pytest.raises(MalformedCheckpoint):
        Weights.over_memory(stored.manifest, [bytearray(16)])

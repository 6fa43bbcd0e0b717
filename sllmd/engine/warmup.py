"""What a process does once so that a model's first token need not wait for it.

Owns: imports that transformers puts off, and the first use of the kernels that every decoder needs. Meant for
the zygote, before it forks: what is warm there is warm in every worker.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from sllmd.core.ids import GenerationId
from sllmd.engine.cache import SlotCache
from sllmd.engine.fused import FusedRunner
from sllmd.engine.protocol import EngineOptions, GenerationState, Sampling
from sllmd.engine.transformer import TransformerEngine

COMMON_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "mixtral")
"""Model families whose modelling code is imported ahead; each is some milliseconds."""


def warm_up(families: Sequence[str] = COMMON_FAMILIES) -> None:
    """Import what is imported lazily and run a tiny model once in each common type.

    Runs on one thread whatever the settings say: a process that has started OpenMP threads must not fork.
    """
    threads_before = torch.get_num_threads()
    for family in families:
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    get_checkpoint_conversion_mapping("llama")
    for dtype in (torch.bfloat16, torch.float32):
        _run_tiny_model(dtype)
    torch.set_num_threads(threads_before)


def _run_tiny_model(dtype: torch.dtype) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM._from_config(config, dtype=dtype).eval()
    engine = TransformerEngine(model, EngineOptions(threads=1, fast_path=False))
    sampling = Sampling(seed=0, max_tokens=4, temperature=0.7)
    engine.add(GenerationState(GenerationId("warm-up"), list(range(8)), sampling))
    while engine.has_work():
        engine.step()
    _run_fused(FusedRunner(model, SlotCache(1, slots=2, capacity=64)))


@torch.inference_mode()
def _run_fused(runner: FusedRunner) -> None:
    """The fast forward, here and not by way of the engine, which would prepack in a thread."""
    for _ in ("as it is", "prepacked"):
        runner.forward(0, torch.arange(8)[None], [0])
        runner.forward(0, torch.ones(2, 1, dtype=torch.long), [8, 0])
        runner.pack()

"""The same engine on a GPU: copied there chunk by chunk, equal to transformers."""

from __future__ import annotations

import pytest
import torch

from sllmd.engine.device_copy import DeviceCopy
from sllmd.engine.protocol import EngineOptions
from sllmd.engine.transformer import build_engine
from tests.engine.driving import drain, outputs, prompts, reference, state
from tests.engine.models import VOCABULARY, checkpoint, random_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA device, or torch without CUDA"),
]


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Gemma3ForCausalLM", "GPTNeoXForCausalLM"])
@pytest.mark.parametrize("partition_count", [1, 2])
def test_a_gpu_says_the_same(architecture: str, partition_count: int) -> None:
    stored = checkpoint(random_model(architecture), partition_count)
    devices = [f"cuda:{index % torch.cuda.device_count()}" for index in range(partition_count)]
    copy = DeviceCopy(stored.manifest, stored.buffers, devices)
    copy.advance([len(buffer) // 2 for buffer in stored.buffers])
    engine = build_engine(stored.manifest, copy.finish(), EngineOptions(threads=1))
    asked = prompts((5, 21, 13), VOCABULARY)
    for number, prompt in enumerate(asked):
        engine.add(state(str(number), prompt))
    assert outputs(drain(engine)) == {str(i): reference(stored.model, p) for i, p in enumerate(asked)}

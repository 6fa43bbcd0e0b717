"""Views over memory, and the copy to a device."""

from __future__ import annotations

import pytest
import torch

from sllmd.core.errors import MalformedCheckpoint
from sllmd.engine.device_copy import DeviceCopy
from sllmd.engine.weights import Weights, majority_dtype
from sllmd.store.manifest import Tensor
from tests.engine.models import checkpoint, random_model


def test_tensors_alias_the_memory() -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"))
    weights = Weights.over_memory(stored.manifest, stored.buffers)
    first = stored.manifest.tensors[0]
    expected = stored.model.state_dict()[first.name]
    assert torch.equal(weights.tensors[first.name], expected)
    stored.buffers[0][first.offset_bytes : first.offset_bytes + 4] = b"\0\0\x80\x3f"
    assert weights.tensors[first.name].flatten()[0] == 1.0


def test_a_tied_tensor_is_the_stored_one() -> None:
    stored = checkpoint(random_model("Qwen2ForCausalLM"))
    weights = Weights.over_memory(stored.manifest, stored.buffers)
    ((tied, name),) = stored.manifest.ties.items()
    assert weights.tensors[tied].data_ptr() == weights.tensors[name].data_ptr()


def test_a_tensor_at_an_odd_offset_is_copied() -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"))
    raw = bytes([7]) + b"\0\0\x80\x3f" * 4
    tensor = Tensor(name="t", dtype="F32", shape=(4,), partition=0, offset_bytes=1, size_bytes=16)
    manifest = stored.manifest.model_copy(update={"tensors": (tensor,), "ties": {}})
    weights = Weights.over_memory(manifest, [bytearray(raw)])
    assert weights.tensors["t"].tolist() == [1.0] * 4


def test_memory_that_is_too_short_is_refused() -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"))
    with pytest.raises(MalformedCheckpoint, match="ends at byte"):
        Weights.over_memory(stored.manifest, [stored.buffers[0][:-100_000]])


def test_another_number_of_partitions_is_refused() -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"))
    with pytest.raises(MalformedCheckpoint, match="1 partitions, memory was given for 2"):
        Weights.over_memory(stored.manifest, [*stored.buffers, bytearray(8)])


def test_a_tie_to_nothing_is_refused() -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"))
    manifest = stored.manifest.model_copy(update={"ties": {"a": "b"}})
    with pytest.raises(MalformedCheckpoint, match="a is tied to b"):
        Weights.over_memory(manifest, stored.buffers)


def test_the_type_most_bytes_have() -> None:
    manifest = checkpoint(random_model("LlamaForCausalLM", torch.bfloat16)).manifest
    norm = manifest.tensors[-1].model_copy(update={"dtype": "F32"})
    mixed = manifest.model_copy(update={"tensors": (*manifest.tensors[:-1], norm)})
    assert majority_dtype(mixed) is torch.bfloat16


@pytest.mark.parametrize("chunk_bytes", [4096, 10_000, 1 << 30])
def test_a_copy_follows_the_watermark(chunk_bytes: int) -> None:
    stored = checkpoint(random_model("LlamaForCausalLM"), partition_count=2)
    manifest = stored.manifest.model_copy(update={"chunk_bytes": chunk_bytes})
    arriving = [bytearray(len(buffer)) for buffer in stored.buffers]
    copy = DeviceCopy(manifest, arriving, ["cpu", "cpu"])
    for tenth in range(1, 10):
        ready = [len(buffer) * tenth // 10 for buffer in stored.buffers]
        for target, source, stop in zip(arriving, stored.buffers, ready, strict=True):
            target[:stop] = source[:stop]
        copy.advance(ready)
    for target, source in zip(arriving, stored.buffers, strict=True):
        target[:] = source
    weights = copy.finish()
    for target in arriving:
        target[:] = bytes(len(target))
    for name, tensor in Weights.over_memory(stored.manifest, stored.buffers).tensors.items():
        assert torch.equal(weights.tensors[name], tensor), name

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sllmd.core.errors import InvalidRequest, UnsupportedCheckpoint
from sllmd.store.layout import (
    absent_heads,
    execution_key,
    lay_out,
    lay_out_in_place,
    possible_twins,
    split_evenly,
)
from sllmd.store.manifest import ALIGNMENT_BYTES
from sllmd.store.source import SourceTensor


def tensor(name: str, size: int = 100, file: str = "f", offset: int = 0, dtype="U8") -> SourceTensor:
    return SourceTensor(name, dtype, (size,), file, offset, size)


ORDERS = {
    "llama": [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.10.input_layernorm.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
    "opt": [
        "model.decoder.embed_positions.weight",
        "model.decoder.embed_tokens.weight",
        "model.decoder.layers.0.self_attn_layer_norm.weight",
        "model.decoder.layers.0.self_attn.q_proj.bias",
        "model.decoder.layers.0.self_attn.out_proj.bias",
        "model.decoder.layers.0.final_layer_norm.bias",
        "model.decoder.layers.0.fc1.weight",
        "model.decoder.layers.0.fc2.weight",
        "model.decoder.final_layer_norm.weight",
        "lm_head.weight",
    ],
    "gpt2": [
        "wpe.weight",
        "wte.weight",
        "h.0.ln_1.weight",
        "h.0.attn.c_attn.weight",
        "h.0.attn.c_proj.weight",
        "h.0.ln_2.weight",
        "h.0.mlp.c_fc.weight",
        "h.0.mlp.c_proj.weight",
        "ln_f.weight",
    ],
    "gpt-neox": [
        "gpt_neox.embed_in.weight",
        "gpt_neox.layers.0.input_layernorm.weight",
        "gpt_neox.layers.0.attention.query_key_value.weight",
        "gpt_neox.layers.0.attention.dense.weight",
        "gpt_neox.layers.0.post_attention_layernorm.weight",
        "gpt_neox.layers.0.mlp.dense_h_to_4h.weight",
        "gpt_neox.layers.0.mlp.dense_4h_to_h.weight",
        "gpt_neox.final_layer_norm.weight",
        "embed_out.weight",
    ],
    "mixture of experts": [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.experts.2.gate_proj.weight",
        "model.layers.0.mlp.experts.10.gate_proj.weight",
        "model.layers.0.mlp.experts.2.down_proj.weight",
        "model.norm.weight",
    ],
}


@pytest.mark.parametrize("family", ORDERS)
def test_tensors_lie_in_the_order_of_a_forward_pass(family: str) -> None:
    shuffled = random.Random(7).sample(ORDERS[family], len(ORDERS[family]))
    assert sorted(shuffled, key=execution_key) == ORDERS[family]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 8))
def test_the_heaviest_partition_is_as_light_as_can_be(weights: list[int], parts: int) -> None:
    parts = min(parts, len(weights))
    starts = split_evenly(weights, parts)

    def heaviest(starts: list[int]) -> int:
        return max(sum(weights[a:b]) for a, b in itertools.pairwise([*starts, len(weights)]))

    assert starts[0] == 0
    assert all(a < b for a, b in itertools.pairwise([*starts, len(weights)]))
    all_cuts = itertools.combinations(range(1, len(weights)), parts - 1)
    assert heaviest(starts) == min(heaviest([0, *cut]) for cut in all_cuts)


def test_every_tensor_is_aligned_none_overlap_and_layers_stay_whole() -> None:
    names = [
        "model.embed_tokens.weight",
        *(f"model.layers.{i}.{n}" for i in range(6) for n in ("a", "b")),
        "model.norm.weight",
    ]
    layout = lay_out([tensor(name, size) for size, name in enumerate(names, start=4090)], partitions=3)
    for index, span in enumerate(layout.spans_bytes):
        end = 0
        for placed in layout.partition(index):
            assert placed.tensor.offset_bytes % ALIGNMENT_BYTES == 0
            assert placed.tensor.offset_bytes >= end
            end = placed.tensor.offset_bytes + placed.tensor.size_bytes
        assert span % ALIGNMENT_BYTES == 0
        assert end <= span
    homes = {placed.tensor.name: placed.tensor.partition for placed in layout.placements}
    assert all(homes[f"model.layers.{i}.a"] == homes[f"model.layers.{i}.b"] for i in range(6))
    assert sorted(homes.values()) == [homes[placed.tensor.name] for placed in layout.placements]
    assert set(homes.values()) == {0, 1, 2}


@pytest.mark.parametrize("partitions", [0, 3, 1000])
def test_more_partitions_than_parts_are_refused(partitions: int) -> None:
    with pytest.raises(InvalidRequest, match="2 indivisible parts"):
        lay_out([tensor("model.embed_tokens.weight"), tensor("lm_head.weight")], partitions=partitions)


def test_in_place_files_follow_each_other_at_aligned_bases() -> None:
    tensors = [tensor("lm_head.weight", 100, "b", 64), tensor("model.embed_tokens.weight", 50, "a", 80)]
    placed, bases, span = lay_out_in_place(tensors, {"a": 5000, "b": 164})
    assert bases == {"a": 0, "b": 8192}
    assert [(t.name, t.offset_bytes) for t in placed] == [
        ("model.embed_tokens.weight", 80),
        ("lm_head.weight", 8256),
    ]
    assert span == 3 * ALIGNMENT_BYTES


def test_in_place_a_misaligned_tensor_is_refused_since_no_view_could_be_made() -> None:
    with pytest.raises(UnsupportedCheckpoint, match="not aligned"):
        lay_out_in_place([tensor("a", 4, "f", 10, "F32")], {"f": 14})


@pytest.mark.parametrize(
    ("names", "config", "ties"),
    [
        (["model.embed_tokens.weight"], {}, {"lm_head.weight": "model.embed_tokens.weight"}),
        (["transformer.wte.weight"], {}, {"lm_head.weight": "transformer.wte.weight"}),
        (["gpt_neox.embed_in.weight"], {}, {"embed_out.weight": "gpt_neox.embed_in.weight"}),
        (["model.embed_tokens.weight", "lm_head.weight"], {"tie_word_embeddings": True}, {}),
        (["model.embed_tokens.weight"], {"tie_word_embeddings": False}, {}),
        (["model.embed_tokens.weight"], {"text_config": {"tie_word_embeddings": False}}, {}),
        (["model.norm.weight"], {}, {}),
    ],
)
def test_a_head_that_is_left_out_is_the_embedding(names: list[str], config: dict, ties: dict) -> None:
    assert absent_heads([tensor(name) for name in names], config) == ties


def test_only_a_head_of_the_embeddings_shape_may_be_its_twin() -> None:
    embedding, head = tensor("model.embed_tokens.weight"), tensor("lm_head.weight")
    assert possible_twins([embedding, head]) == [(head, embedding)]
    assert possible_twins([embedding, tensor("lm_head.weight", 99)]) == []

"""Where tensors go: execution order, partitions, alignment, ties. Pure.

The order of bytes is the order in which a forward pass first needs them (embeddings, layers 0..n, final
norm, head), so that a loader that reads front to back feeds an engine that runs front to back (paper,
section 4.1). Over k partitions, layers stay whole and contiguous, and the fullest partition is as small
as it can be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sllmd.core.errors import InvalidRequest, UnsupportedCheckpoint
from sllmd.store.header import ITEM_BYTES
from sllmd.store.manifest import Tensor, align_up
from sllmd.store.source import SourceTensor

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)(?:\.|$)")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.")
_EMBEDDING = re.compile(r"embed|wte|wpe|word_embeddings|position")
_PROJECTION = re.compile(r"project_out")
_WITHIN_LAYER = tuple(
    re.compile(pattern)
    for pattern in (
        r"input_layernorm|ln_1|attention_norm|self_attn_layer_norm|pre_attention",
        r"(?:attn|attention)\.(?:q_proj|query|c_attn|qkv|W_pack|W_qkv|in_proj)",
        r"(?:attn|attention)\.k_proj|attention\.key",
        r"(?:attn|attention)\.v_proj|attention\.value",
        r"(?:attn|attention)\.",
        r"post_attention|pre_feedforward|ln_2|ffn_norm|final_layer_norm",
        r"mlp\.gate\.|router|block_sparse_moe\.gate",
        r"gate_proj|gate_up|fc1|c_fc|h_to_4h|\.w1\.",
        r"up_proj|\.w3\.",
        r"down_proj|fc2|c_proj|4h_to_h|\.w2\.",
    )
)
"""A layer's parts in the order of a pre-norm decoder's forward pass; the first match counts."""
_EMBEDDING_TO_HEAD = {
    "embed_tokens.weight": "lm_head.weight",
    "wte.weight": "lm_head.weight",
    "word_embeddings.weight": "lm_head.weight",
    "embed_in.weight": "embed_out.weight",
}


@dataclass(frozen=True, slots=True)
class Placement:
    """A tensor's way from its source to its place."""

    source: SourceTensor
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Placements in execution order and the length of each partition, a multiple of the alignment."""

    placements: tuple[Placement, ...]
    spans_bytes: tuple[int, ...]

    def partition(self, index: int) -> tuple[Placement, ...]:
        """The placements of one partition, by rising offset."""
        return tuple(placed for placed in self.placements if placed.tensor.partition == index)


def execution_key(name: str) -> tuple[int, int, int, tuple[tuple[int, int, str], ...]]:
    """Sorts tensor names into the order in which a forward pass needs them."""
    layer = _LAYER.search(name)
    if layer:
        return (1, int(layer.group(1)), _rank_within_layer(name[layer.end() :]), _natural(name))
    if _HEAD.search(name):
        return (3, 0, 0, _natural(name))
    if _PROJECTION.search(name) or not _EMBEDDING.search(name):
        return (2, 0, 0, _natural(name))
    return (0, 0, 0, _natural(name))


def _rank_within_layer(rest: str) -> int:
    matches = (rank for rank, pattern in enumerate(_WITHIN_LAYER) if pattern.search(rest))
    return next(matches, len(_WITHIN_LAYER))


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Digits compare as numbers: expert 10 comes after expert 9."""
    return tuple(
        (1, int(part), "") if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name) if part
    )


def lay_out(tensors: Sequence[SourceTensor], *, partitions: int) -> Layout:
    """Order and place tensors over ``partitions`` address spaces.

    Raises InvalidRequest when there are more partitions than units to put into them.
    """
    ordered = sorted(tensors, key=lambda tensor: execution_key(tensor.name))
    units = _units(ordered)
    if not 1 <= partitions <= len(units):
        raise InvalidRequest(
            f"the model cannot be spread over {partitions} partitions: it has {len(units)} indivisible parts"
        )
    starts = split_evenly([sum(align_up(tensor.size_bytes) for tensor in unit) for unit in units], partitions)
    ends = [*starts[1:], len(units)]
    placements: list[Placement] = []
    spans: list[int] = []
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        offset = 0
        for tensor in (tensor for unit in units[start:end] for tensor in unit):
            placements.append(Placement(tensor, _placed(tensor, index, offset)))
            offset = align_up(offset + tensor.size_bytes)
        spans.append(offset)
    return Layout(tuple(placements), tuple(spans))


def _units(ordered: Sequence[SourceTensor]) -> list[list[SourceTensor]]:
    """What stays whole: the embeddings, each layer, the final norm with the head."""
    units: dict[tuple[int, int], list[SourceTensor]] = {}
    for tensor in ordered:
        place, layer, _, _ = execution_key(tensor.name)
        units.setdefault((min(place, 2), layer), []).append(tensor)
    return list(units.values())


def split_evenly(weights: Sequence[int], parts: int) -> list[int]:
    """Where each of ``parts`` contiguous, non-empty runs starts when the heaviest is as light as can be.

    ``best[i]`` after round j: the smallest heaviest run of weights[i:] cut into j + 1 runs.
    """
    count = len(weights)
    totals = [0]
    for weight in weights:
        totals.append(totals[-1] + weight)
    best: list[float] = [float(totals[count] - totals[i]) for i in range(count)] + [float("inf")]
    cuts: list[list[int]] = []
    for part in range(1, parts):
        following, cut = [float("inf")] * (count + 1), [count] * (count + 1)
        for i in range(count - part):
            for j in range(i + 1, count - part + 1):
                heaviest = max(float(totals[j] - totals[i]), best[j])
                if heaviest < following[i]:
                    following[i], cut[i] = heaviest, j
        best = following
        cuts.append(cut)
    starts = [0]
    for cut in reversed(cuts):
        starts.append(cut[starts[-1]])
    return starts


def lay_out_in_place(
    tensors: Sequence[SourceTensor], file_bytes: Mapping[str, int]
) -> tuple[tuple[Tensor, ...], dict[str, int], int]:
    """One partition over files as they are: tensors in execution order, each file's base, the span.

    Raises UnsupportedCheckpoint when a tensor is not aligned to its element size, which views need.
    """
    bases: dict[str, int] = {}
    span = 0
    for file, size in file_bytes.items():
        bases[file] = span
        span = align_up(span + size)
    ordered = sorted(tensors, key=lambda tensor: execution_key(tensor.name))
    for tensor in ordered:
        if tensor.offset_bytes % ITEM_BYTES[tensor.dtype]:
            raise UnsupportedCheckpoint(
                f"{tensor.file} cannot be used as it is: {tensor.name} is not aligned to its element size",
                hint="import it without --in-place, from a local directory",
            )
    placed = tuple(_placed(tensor, 0, bases[tensor.file] + tensor.offset_bytes) for tensor in ordered)
    return placed, bases, span


def _placed(tensor: SourceTensor, partition: int, offset_bytes: int) -> Tensor:
    return Tensor(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        partition=partition,
        offset_bytes=offset_bytes,
        size_bytes=tensor.size_bytes,
    )


def absent_heads(tensors: Sequence[SourceTensor], config: Mapping[str, object]) -> dict[str, str]:
    """Ties for an output head that a checkpoint leaves out because it equals the embedding."""
    if _says_untied(config):
        return {}
    names = {tensor.name for tensor in tensors}
    ties = {}
    for name in names:
        head = _head_of(name)
        if head is not None and head not in names:
            ties[head] = name
    return ties


def possible_twins(tensors: Sequence[SourceTensor]) -> list[tuple[SourceTensor, SourceTensor]]:
    """(head, embedding) pairs that may be the same bytes stored twice; whoever can read compares them."""
    by_name = {tensor.name: tensor for tensor in tensors}
    pairs = []
    for name, embedding in by_name.items():
        head = by_name.get(_head_of(name) or "")
        if head is not None and (head.dtype, head.shape) == (embedding.dtype, embedding.shape):
            pairs.append((head, embedding))
    return pairs


def _head_of(name: str) -> str | None:
    """The head's conventional name, if ``name`` is an input embedding."""
    for suffix, head in _EMBEDDING_TO_HEAD.items():
        if name == suffix or name.endswith("." + suffix):
            return head
    return None


def _says_untied(config: Mapping[str, object]) -> bool:
    text = config.get("text_config")
    inner = text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
    return config.get("tie_word_embeddings", inner) is False

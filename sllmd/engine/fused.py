"""Runner 2: an own forward for llama and its kin, with few and large operations.

Owns: the arithmetic of one pass over attention + gated MLP decoders whose layers all see everything before
them: queries, keys and values from one product, gate and up from another, residuals added inside the
products. Works on the same cache as runner 1. Knows nothing of when it is used: ``upgrade`` lets it run
only after comparing it with runner 1.

On the CPU its weights can be prepacked: laid out anew for oneDNN, which doubles the speed of small batches
and costs a copy of the weights. ``pack`` may run in another thread, before the runner is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name

from sllmd.engine.cache import SlotCache
from sllmd.engine.runner import Span

_FAMILIES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
_STATIC_ROPES = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings that depend on the position alone, not on the longest row of a pass."""
_PRODUCTS_FROM_KEYS = 600
"""From so many keys in a pass on, attention as two batched products beats the fused kernel (Zen 5)."""
_SHORT_NORM_ROWS_MAX = 64
"""Up to so many rows the number of operations counts, not their size."""


def is_fusible(model: Any) -> bool:
    """Whether this forward describes ``model``."""
    if type(model).__name__ not in _FAMILIES:
        return False
    config = model.config
    one_device = len({parameter.device for parameter in model.parameters()}) == 1
    full = all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or ())
    windowed = type(model).__name__ == "MistralForCausalLM" and config.sliding_window is not None
    static = model.model.rotary_emb.rope_type in _STATIC_ROPES
    return one_device and full and not windowed and static and config.hidden_act == "silu"


class Projection:
    """A product with one or more of the model's weight matrices, stacked."""

    def __init__(self, *linears: Any) -> None:
        self._weights = [linear.weight for linear in linears]
        biases = [linear.bias for linear in linears]
        self._bias = None if biases[0] is None else torch.cat(biases)
        self._packed: torch.Tensor | None = None

    def pack(self) -> None:
        """Lay the weights out for oneDNN."""
        stacked = self._weights[0] if len(self._weights) == 1 else torch.cat(self._weights)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(stacked.detach(), None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` (rows x in) times the stacked weights."""
        if self._packed is not None:
            packed: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
                x, self._packed, self._bias, "none", [], ""
            )
            return packed
        if len(self._weights) == 1:
            single: torch.Tensor = F.linear(x, self._weights[0], self._bias)
            return single
        product = torch.cat([F.linear(x, weight) for weight in self._weights], dim=-1)
        return product if self._bias is None else product + self._bias

    def add_to(self, residual: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``residual`` plus the product."""
        if self._packed is not None:
            total: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                x, residual, self._packed, self._bias, "add"
            )
            return total
        return residual + self(x)


class _Layer:
    """One decoder layer's weights, and the parts of its pass that do not depend on the kind of pass."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = Projection(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = Projection(attention.o_proj)
        self.gate_up = Projection(mlp.gate_proj, mlp.up_proj)
        self.down = Projection(mlp.down_proj)
        self.norm_attention = _Norm(layer.input_layernorm)
        self.norm_mlp = _Norm(layer.post_attention_layernorm)
        self.norm_queries = _Norm(attention.q_norm) if hasattr(attention, "q_norm") else None
        self.norm_keys = _Norm(attention.k_norm) if hasattr(attention, "k_norm") else None
        self.projections = (self.qkv, self.out, self.gate_up, self.down)

    def feed_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(self.norm_mlp(hidden)).chunk(2, dim=-1)
        return self.down.add_to(hidden, F.silu(gate).mul_(up))


class _Norm:
    """Root-mean-square norm.

    For a few rows torch's own takes twice as long as its definition written with a vector norm:
    ``x w / sqrt(|x|^2 / n + eps)`` is ``x (w sqrt(n)) / hypot(|x|, sqrt(n eps))``.
    """

    def __init__(self, norm: Any) -> None:
        self._weight = norm.weight
        self._epsilon = norm.variance_epsilon
        self._width = norm.weight.numel()
        self._scaled = norm.weight.float() * math.sqrt(self._width)
        self._floor = torch.tensor(math.sqrt(self._width * self._epsilon), device=norm.weight.device)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > _SHORT_NORM_ROWS_MAX:
            return F.rms_norm(x, (self._width,), self._weight, self._epsilon)
        exact = x.float()
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).hypot_(self._floor)
        normed: torch.Tensor = (exact * self._scaled).div_(length).to(x.dtype)
        return normed


@dataclass(frozen=True, slots=True)
class _Shape:
    """What attention needs to know of the model."""

    queries: int
    """Query heads."""
    heads: int
    """Key and value heads."""
    width: int
    """Of one head."""
    scale: float

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.queries // self.heads


class FusedRunner:
    """See ``Runner``."""

    def __init__(self, model: Any, cache: SlotCache) -> None:
        config = model.config
        attention = model.model.layers[0].self_attn
        self.name = "fused"
        self._cache = cache
        self._shape = _Shape(
            queries=config.num_attention_heads,
            heads=config.num_key_value_heads,
            width=attention.head_dim,
            scale=attention.scaling,
        )
        self._embedding = model.model.embed_tokens.weight
        self._layers = [_Layer(layer) for layer in model.model.layers]
        self._norm = _Norm(model.model.norm)
        self._head = Projection(model.lm_head)
        self._rotary = model.model.rotary_emb
        self._cosines = self._sines = self._embedding.new_empty(0)

    def pack(self) -> None:
        """Prepack all weights. Takes about a second per gigabyte and as much memory as they have."""
        for projection in self._projections():
            projection.pack()
        self.name = "prepacked"

    def forward(
        self, first_slot: int, tokens: torch.Tensor, starts: Sequence[int], *, every_position: bool = False
    ) -> torch.Tensor:
        """See ``Runner``."""
        rows, length = tokens.shape
        if length > 1:
            assert rows == 1
            spans = [Span(first_slot, starts[0], length)]
            hidden = self._run_spans(spans, tokens[0])
            return self._logits(hidden)[None] if every_position else self._logits(hidden[-1:])
        self._cache.begin(first_slot, starts, 1)
        hidden = self._embed(tokens[:, 0])
        _, positions = self._cache.indices(hidden.device)
        attention = _DecodeAttention(self._cache, self._shape, hidden)
        logits = self._logits(self._run_layers(hidden, positions, attention))
        return logits[:, None] if every_position else logits

    def prefill(self, spans: Sequence[Span], tokens: torch.Tensor) -> torch.Tensor:
        """See ``Runner``."""
        hidden = self._run_spans(spans, tokens)
        last = torch.tensor([span.tokens for span in spans]).cumsum(0) - 1
        return self._logits(hidden[last.to(hidden.device)])

    def _run_spans(self, spans: Sequence[Span], tokens: torch.Tensor) -> torch.Tensor:
        for span in spans:
            self._cache.reserve(span.slot + 1, span.stop)
        hidden = self._embed(tokens)
        positions = torch.cat([torch.arange(span.start, span.stop, device=hidden.device) for span in spans])
        attention = _ChunkAttention(self._cache, spans, self._shape, hidden)
        return self._run_layers(hidden, positions, attention)

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.embedding(tokens.to(self._embedding.device), self._embedding)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._head(self._norm(hidden))

    def _projections(self) -> Iterator[Projection]:
        for layer in self._layers:
            yield from layer.projections
        yield self._head

    def _run_layers(self, hidden: torch.Tensor, positions: torch.Tensor, attend: _Attention) -> torch.Tensor:
        """``hidden`` is tokens x width; ``positions`` says where in their rows they are."""
        cosines, sines = self._rotation(positions)
        queries, heads, width = self._shape.queries, self._shape.heads, self._shape.width
        for index, layer in enumerate(self._layers):
            fused = layer.qkv(layer.norm_attention(hidden))
            rotated = fused[:, : (queries + heads) * width].view(-1, queries + heads, width)
            if layer.norm_queries is not None and layer.norm_keys is not None:
                rotated[:, :queries] = layer.norm_queries(rotated[:, :queries])
                rotated[:, queries:] = layer.norm_keys(rotated[:, queries:])
            turned = rotated.roll(width // 2, dims=-1)
            torch.addcmul(rotated * cosines, turned, sines, out=rotated)
            keys_values = fused[:, queries * width :].view(-1, 2, heads, width)
            attended = attend(self._cache.layers[index], rotated[:, :queries], keys_values)
            hidden = layer.feed_forward(layer.out.add_to(hidden, attended))
        return hidden

    def _rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the tokens, the sines signed so that turning a vector is a roll."""
        if self._cosines.shape[0] < self._cache.capacity:
            known = torch.arange(self._cache.capacity, device=positions.device)[None]
            cosines, sines = self._rotary(self._embedding, known)
            half = self._shape.width // 2
            sines = torch.cat((-sines[0, :, :half], sines[0, :, half:]), dim=-1)
            self._cosines, self._sines = cosines[0][:, None], sines[:, None]
        return self._cosines[positions], self._sines[positions]


class _Attention(Protocol):
    """Attention of one pass, over any of its layers."""

    def __call__(self, layer: Any, queries: torch.Tensor, keys_values: torch.Tensor) -> torch.Tensor:
        """Write the tokens' keys and values, then look at their rows.

        ``queries`` tokens x heads x width, ``keys_values`` tokens x 2 x heads x width.
        """


def _store(layer: Any, keys_values: torch.Tensor) -> torch.Tensor:
    """2 x slots x heads x capacity x width."""
    if not layer.is_initialized:
        sample = keys_values[:1, 0, :, None]
        layer.lazy_initialization(sample, sample)
    (store,) = layer.stores
    return store  # type: ignore[no-any-return]


class _ChunkAttention:
    """Prompts: some rows, many tokens of each; they lie one behind the other."""

    def __init__(self, cache: SlotCache, spans: Sequence[Span], shape: _Shape, hidden: torch.Tensor) -> None:
        self._cache, self._shape = cache, shape
        self._spans = [(span, _chunk_mask(span, hidden.device)) for span in spans]

    def __call__(self, layer: Any, queries: torch.Tensor, keys_values: torch.Tensor) -> torch.Tensor:
        """See ``_Attention``."""
        store = _store(layer, keys_values)
        sizes = [span.tokens for span, _ in self._spans]
        attended = [
            self._attend(store, span, mask, own_queries, own)
            for (span, mask), own_queries, own in zip(
                self._spans, torch.split(queries, sizes), torch.split(keys_values, sizes), strict=True
            )
        ]
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def _attend(
        self,
        store: torch.Tensor,
        span: Span,
        mask: torch.Tensor | None,
        queries: torch.Tensor,
        keys_values: torch.Tensor,
    ) -> torch.Tensor:
        store[:, span.slot, :, span.start : span.stop] = keys_values.permute(1, 2, 0, 3)
        keys, values = store[:, span.slot, None, :, : span.stop]
        attended = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._shape.scale,
            enable_gqa=self._shape.group > 1,
        )
        return attended[0].transpose(0, 1).reshape(span.tokens, -1)


def _chunk_mask(span: Span, device: torch.device) -> torch.Tensor | None:
    """None: the chunk begins its row, and a causal mask will do."""
    if span.start == 0:
        return None
    positions = torch.arange(span.stop, device=device)
    return (positions[None, :] <= positions[span.start :, None])[None, None]


class _DecodeAttention:
    """One token for each of the pass's rows."""

    def __init__(self, cache: SlotCache, shape: _Shape, hidden: torch.Tensor) -> None:
        self._cache, self._shape = cache, shape
        self._rows = cache.count
        many = cache.count * cache.span >= _PRODUCTS_FROM_KEYS
        self._as_products = many and hidden.device.type == "cpu"
        _, starts = cache.indices(hidden.device)
        visible = torch.arange(cache.span, device=hidden.device)[None, :] <= starts[:, None]
        self._mask = None if cache.aligned else visible[:, None, None, :]
        if self._as_products:
            bias = torch.zeros(visible.shape, dtype=hidden.dtype).masked_fill_(~visible, float("-inf"))
            self._bias = bias.repeat_interleave(shape.heads, dim=0)[:, None, :]

    def __call__(self, layer: Any, queries: torch.Tensor, keys_values: torch.Tensor) -> torch.Tensor:
        """See ``_Attention``."""
        cache = self._cache
        store = _store(layer, keys_values)
        if self._rows == 1:
            store[:, cache.first, :, cache.start_list[0]] = keys_values[0]
        else:
            slots, starts = cache.indices(queries.device)
            store[:, slots, :, starts] = keys_values
        if self._as_products:
            return self._by_products(store, queries)
        keys, values = store[:, cache.first : cache.first + self._rows, :, : cache.span]
        attended = F.scaled_dot_product_attention(
            queries.view(self._rows, self._shape.heads, self._shape.group, -1),
            keys,
            values,
            attn_mask=self._mask,
            scale=self._shape.scale,
        )
        return attended.reshape(self._rows, -1)

    def _by_products(self, store: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """Keys times queries and weights times values, for all rows and heads at once.

        In this order oneDNN needs half the time that queries times keys takes.
        """
        shape, cache = self._shape, self._cache
        first, last = cache.first * shape.heads, (cache.first + self._rows) * shape.heads
        keys, values = store.flatten(1, 2)[:, first:last, : cache.span]
        columns = queries.reshape(-1, shape.group, shape.width).transpose(1, 2)
        scores = torch.bmm(keys, columns).transpose(1, 2).contiguous()
        weights = torch.add(self._bias, scores, alpha=shape.scale).softmax(dim=-1)
        return torch.bmm(weights, values).view(self._rows, -1)

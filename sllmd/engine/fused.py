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
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its customary name

from sllmd.engine.cache import SlotCache

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
        return (exact * self._scaled).div_(length).to(x.dtype)


class FusedRunner:
    """See ``Runner``."""

    def __init__(self, model: Any, cache: SlotCache) -> None:
        config = model.config
        attention = model.model.layers[0].self_attn
        self.name = "fused"
        self._cache = cache
        self._queries = config.num_attention_heads
        self._heads = config.num_key_value_heads
        self._width = attention.head_dim
        self._scale = attention.scaling
        self._embedding = model.model.embed_tokens.weight
        self._layers = [_Layer(layer) for layer in model.model.layers]
        self._norm = _Norm(model.model.norm)
        self._head = Projection(model.lm_head)
        self._rotary = model.model.rotary_emb
        self._cosines = self._sines = self._embedding.new_empty(0, self._width)

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
        self._cache.begin(first_slot, starts, length)
        hidden = F.embedding(tokens.to(self._embedding.device).reshape(-1), self._embedding)
        hidden = self._run_layers(hidden, rows, length)
        if not every_position and length > 1:
            hidden = hidden.view(rows, length, -1)[:, -1]
        logits = self._head(self._norm(hidden))
        return logits.view(rows, length, -1) if every_position else logits

    def _projections(self) -> Iterator[Projection]:
        for layer in self._layers:
            yield from layer.projections
        yield self._head

    def _run_layers(self, hidden: torch.Tensor, rows: int, length: int) -> torch.Tensor:
        cosines, sines = self._rotation(hidden.device, length)
        queries, heads, width = self._queries, self._heads, self._width
        attend = _Attention(self._cache, rows, length, (queries // heads, heads), self._scale, hidden)
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

    def _rotation(self, device: torch.device, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines for the pass's tokens, the sines signed so that turning a vector is a roll."""
        if self._cosines.shape[0] < self._cache.span:
            positions = torch.arange(self._cache.capacity, device=device)[None]
            cosines, sines = self._rotary(self._embedding, positions)
            half = self._width // 2
            sines = torch.cat((-sines[0, :, :half], sines[0, :, half:]), dim=-1)
            self._cosines, self._sines = cosines[0][:, None], sines[:, None]
        if length == 1:
            _, starts = self._cache.indices(device)
            return self._cosines[starts], self._sines[starts]
        start = self._cache.start_list[0]
        return self._cosines[start : start + length], self._sines[start : start + length]


class _Attention:
    """Attention of one pass, over any layer: writes keys and values, then looks at them."""

    def __init__(
        self,
        cache: SlotCache,
        rows: int,
        length: int,
        heads: tuple[int, int],
        scale: float,
        hidden: torch.Tensor,
    ) -> None:
        """``heads``: query heads to a key head, and key heads."""
        self._cache, self._rows, self._length = cache, rows, length
        self._group, self._heads = heads
        self._scale = scale
        many = length == 1 and rows * cache.span >= _PRODUCTS_FROM_KEYS
        self._as_products = many and hidden.device.type == "cpu"
        self._mask = self._build_mask(hidden)

    def __call__(self, layer: Any, queries: torch.Tensor, keys_values: torch.Tensor) -> torch.Tensor:
        """``queries`` tokens x heads x width; ``keys_values`` tokens x 2 x heads x width."""
        cache = self._cache
        if not layer.is_initialized:
            sample = keys_values[:1, 0, :, None]
            layer.lazy_initialization(sample, sample)
        if self._length > 1 or self._rows == 1:
            start = cache.start_list[0]
            (store,) = layer.stores
            place = store[:, cache.first, :, start : start + self._length]
            place.copy_(keys_values.permute(1, 2, 0, 3))
        else:
            slots, starts = cache.indices(queries.device)
            layer.stores[0][:, slots, :, starts] = keys_values
        if self._length > 1:
            return self._attend_chunk(layer, queries)
        if self._as_products:
            return self._attend_by_products(layer, queries)
        grouped = queries.view(self._rows, -1, self._group, queries.shape[2])
        span = slice(cache.first, cache.first + self._rows)
        attended = F.scaled_dot_product_attention(
            grouped,
            layer.keys[span, :, : cache.span],
            layer.values[span, :, : cache.span],
            attn_mask=self._mask,
            scale=self._scale,
        )
        return attended.reshape(self._rows, -1)

    def _attend_chunk(self, layer: Any, queries: torch.Tensor) -> torch.Tensor:
        """One row, many tokens."""
        cache = self._cache
        attended = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            layer.keys[cache.first : cache.first + 1, :, : cache.span],
            layer.values[cache.first : cache.first + 1, :, : cache.span],
            attn_mask=self._mask,
            is_causal=self._mask is None,
            scale=self._scale,
            enable_gqa=self._group > 1,
        )
        return attended[0].transpose(0, 1).reshape(self._length, -1)

    def _attend_by_products(self, layer: Any, queries: torch.Tensor) -> torch.Tensor:
        """One token for each of many rows: keys times queries, which oneDNN likes better than the reverse."""
        rows, span = self._rows, self._cache.span
        heads, width = self._heads, queries.shape[2]
        first, last = self._cache.first * heads, (self._cache.first + rows) * heads
        keys = layer.keys.flatten(0, 1)[first:last, :span]
        values = layer.values.flatten(0, 1)[first:last, :span]
        columns = queries.reshape(rows * heads, self._group, width).transpose(1, 2)
        scores = torch.bmm(keys, columns).transpose(1, 2).contiguous()
        weights = torch.add(self._mask, scores, alpha=self._scale).softmax(dim=-1)
        return torch.bmm(weights, values).view(rows, -1)

    def _build_mask(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """What each token may look at: None where everything in reach, else as its consumer wants it."""
        cache = self._cache
        device = hidden.device
        reach = torch.arange(cache.span, device=device)
        if self._length > 1:
            start = cache.start_list[0]
            if start == 0:
                return None
            ends = torch.arange(start, start + self._length, device=device)
            return (reach[None, :] <= ends[:, None])[None, None]
        if cache.aligned and not self._as_products:
            return None
        _, starts = cache.indices(device)
        visible = reach[None, :] <= starts[:, None]
        if not self._as_products:
            return visible[:, None, None, :]
        bias = torch.zeros(visible.shape, dtype=hidden.dtype, device=device)
        bias.masked_fill_(~visible, float("-inf"))
        return bias.repeat_interleave(self._heads, dim=0)[:, None, :]

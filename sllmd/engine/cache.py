"""Keys and values of running rows, and the masks that go with them.

Owns: a ``transformers.Cache`` whose rows have different lengths. Every layer keeps one store of *slots*
(a row's place) x *capacity* (tokens); a row begins at position 0 of its slot, so rows of any lengths
decode together and nothing is ever concatenated. Sliding-window layers keep all tokens too: their window
is in the mask. Knows nothing of generations; slots are numbers. Start at ``SlotCache.begin``.

A pass covers consecutive slots. Where row i starts is told to the mask as a tensor of starts: a token at
absolute position p sees key j exactly if the model's own rule (causal, sliding, chunked) says so for (p, j),
which also hides whatever an earlier row left behind in the slot.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SDPA_ATTENTION = "sllmd_sdpa"
"""Name under which transformers finds fused attention with ragged masks."""
EAGER_ATTENTION = "sllmd_eager"
"""The same for models whose attention must run in their own code (logit soft-capping, sinks)."""

Store = torch.Tensor

RELEASE_TOKENS_MIN = 1024
"""A slot that held fewer tokens keeps its memory for the next row: giving it back and getting it again costs
more than it is worth."""
_PRIVATE_ON_DEMAND = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
"""0x4000 is MAP_NORESERVE: room is not memory until it is written."""


class SlotLayer(CacheLayerMixin):  # type: ignore[misc] # transformers is not typed
    """One layer's keys and values, slots x heads x capacity x width."""

    is_sliding = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self._cache = cache
        self.pages: list[mmap.mmap | None] = []
        """The memory under each store, where it is the kernel's to take back."""
        self.stores: list[Store] = []
        """What has to be copied when a row moves: (keys and values x) slots x heads x capacity x width."""

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate, now that the model has shown its heads, widths, type and device."""
        slots, capacity = self._cache.slots, self._cache.capacity
        heads, width = key_states.shape[1], key_states.shape[3]
        if key_states.shape[1::2] == value_states.shape[1::2]:
            # One store for both, so that a pass can write keys and values at once.
            shapes: list[tuple[int, ...]] = [(2, slots, heads, capacity, width)]
        else:
            value_shape = (slots, value_states.shape[1], capacity, value_states.shape[3])
            shapes = [(slots, heads, capacity, width), value_shape]
        for shape in shapes:
            store, pages = _zeros(shape, key_states)
            self.stores.append(store)
            self.pages.append(pages)
        self._make_views()
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the pass's tokens; give back everything its rows may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        cache = self._cache
        first, last = cache.first, cache.first + cache.count
        length = key_states.shape[2]
        if cache.aligned:
            start = cache.start_list[0]
            self.keys[first:last, :, start : start + length] = key_states
            self.values[first:last, :, start : start + length] = value_states
        else:
            assert length == 1, "rows of different lengths advance one token at a time"
            slots, starts = cache.indices(key_states.device)
            self.keys[slots, :, starts] = key_states[:, :, 0]
            self.values[slots, :, starts] = value_states[:, :, 0]
        return self.keys[first:last, :, : cache.span], self.values[first:last, :, : cache.span]

    def grow(self) -> None:
        """Move to stores of the cache's new size."""
        for index, old in enumerate(self.stores):
            shape = list(old.shape)
            shape[-4], shape[-2] = self._cache.slots, self._cache.capacity
            new, self.pages[index] = _zeros(shape, old)
            new[..., : old.shape[-4], :, : old.shape[-2], :] = old
            self.stores[index] = new
        self._make_views()

    def release(self, slot: int, tokens: int) -> None:
        """Give the memory of a slot's first ``tokens`` back, as far as it is whole pages."""
        for store, pages in zip(self.stores, self.pages, strict=True):
            if pages is None:
                continue
            for strip in _strips(store, slot):
                start = -(-strip // mmap.PAGESIZE) * mmap.PAGESIZE
                stop = strip + tokens * store.shape[-1] * store.element_size()
                length = stop // mmap.PAGESIZE * mmap.PAGESIZE - start
                if length > 0:
                    pages.madvise(mmap.MADV_DONTNEED, start, length)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 - transformers' interface
        """Keys a mask must cover, and the position of the first."""
        return self._cache.span, 0

    def get_seq_length(self) -> int:
        """Tokens before the pass in its longest row."""
        return max(self._cache.start_list)

    def get_max_length(self) -> int:
        """No maximum: the cache grows."""
        return -1

    def _make_views(self) -> None:
        if len(self.stores) == 1:
            self.keys, self.values = self.stores[0].unbind(0)
        else:
            self.keys, self.values = self.stores


class SlotCache(Cache):  # type: ignore[misc] # transformers is not typed
    """The layers, and which rows the pass in progress is about."""

    def __init__(self, layer_count: int, *, slots: int, capacity: int) -> None:
        self.slots = slots
        self.capacity = _odd_lines(capacity)
        self.first = 0
        self.count = 0
        self.span = 0
        self.aligned = True
        self.start_list: list[int] = [0]
        self._starts = torch.zeros(1, dtype=torch.long)
        self._indices: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        super().__init__(layers=[SlotLayer(self) for _ in range(layer_count)])

    def begin(self, first: int, starts: Sequence[int], length: int) -> None:
        """A pass over ``length`` tokens of each of the rows in slots ``first``, ``first + 1``, ..."""
        self.first, self.count = first, len(starts)
        self.start_list = list(starts)
        self.span = max(self.start_list) + length
        self.aligned = min(self.start_list) == max(self.start_list)
        self._starts = torch.tensor(self.start_list)
        self._indices.clear()
        self.reserve(first + self.count, self.span)

    def reserve(self, slots: int, tokens: int) -> None:
        """Have at least this much room; grows by doubling, so that copies stay rare.

        A copy writes, and so commits, all the old room: where room costs nothing, take it all at first.
        """
        if slots <= self.slots and tokens <= self.capacity:
            return
        self.slots = max(self.slots, 1 << (slots - 1).bit_length())
        self.capacity = max(self.capacity, _odd_lines(1 << (tokens - 1).bit_length()))
        for layer in self.layers:
            layer.grow()

    def indices(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Slots and starts of the pass's rows, for indexing on ``device``."""
        if device not in self._indices:
            slots = torch.arange(self.first, self.first + self.count)
            self._indices[device] = (slots.to(device), self._starts.to(device))
        return self._indices[device]

    def get_query_offset(self, layer_idx: int = 0) -> Any:  # noqa: ARG002 - transformers' interface
        """Where each row of the pass starts: transformers hands it on to ``ragged_mask`` unread."""
        return RowStarts(self._starts, self.aligned)

    def copy_row(self, source: int, target: int, tokens: int) -> None:
        """Give slot ``target`` the first ``tokens`` of slot ``source``."""
        self.reserve(max(source, target) + 1, tokens)
        for layer in self.layers:
            for store in layer.stores:
                store[..., target, :, :tokens, :] = store[..., source, :, :tokens, :]

    def read_row(self, slot: int, tokens: int) -> list[torch.Tensor]:
        """A copy of the first ``tokens`` of a slot, for ``write_row``."""
        return [store[..., slot, :, :tokens, :].clone() for layer in self.layers for store in layer.stores]

    def write_row(self, slot: int, row: Sequence[torch.Tensor], tokens: int) -> None:
        """Put the first ``tokens`` of what ``read_row`` gave into a slot."""
        self.reserve(slot + 1, tokens)
        stores = [store for layer in self.layers for store in layer.stores]
        for store, saved in zip(stores, row, strict=True):
            store[..., slot, :, :tokens, :] = saved[..., :tokens, :]

    def wipe(self, slot: int, tokens: int) -> None:
        """Zero the first ``tokens`` of a slot: NaN there would reach the next row through its mask."""
        for layer in self.layers:
            for store in layer.stores:
                store[..., slot, :, :tokens, :] = 0

    def release(self, slot: int, tokens: int) -> None:
        """Slot ``slot`` is free; it held ``tokens``. Long rows' memory goes back to the system."""
        if tokens >= RELEASE_TOKENS_MIN:
            for layer in self.layers:
                layer.release(slot, tokens)


def _odd_lines(tokens: int) -> int:
    """A little more than ``tokens``: rows a power of two apart would all fall into the same cache sets."""
    return tokens + 8


def _strips(store: Store, slot: int) -> Iterator[int]:
    """Offsets in bytes of what a slot has in each head, keys and values."""
    slots, heads = store.shape[-4], store.shape[-3]
    strip_bytes = store.shape[-2] * store.shape[-1] * store.element_size()
    for half in range(store.numel() * store.element_size() // (slots * heads * strip_bytes)):
        for head in range(heads):
            yield ((half * slots + slot) * heads + head) * strip_bytes


def _zeros(shape: Sequence[int], like: torch.Tensor) -> tuple[torch.Tensor, mmap.mmap | None]:
    """Zeros, since a masked key still counts as zero times what lies there, which must not be NaN.

    On the CPU they are pages the kernel hands out, zeroed, when they are first written: a cache commits
    memory for the tokens it has held and no more.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape), None
    pages = mmap.mmap(-1, math.prod(shape) * like.element_size(), flags=_PRIVATE_ON_DEMAND)
    pages.madvise(mmap.MADV_NOHUGEPAGE)  # a head's first token must not commit 2 MB
    return torch.frombuffer(pages, dtype=like.dtype).view(*shape), pages


class RowStarts:
    """A row-wise offset in the place where transformers expects one number."""

    def __init__(self, starts: torch.Tensor, aligned: bool) -> None:
        self.starts = starts
        self.aligned = aligned


def ragged_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: RowStarts,
    kv_offset: int = 0,
    mask_function: Callable[..., torch.Tensor] = causal_mask_function,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    **_kwargs: Any,
) -> torch.Tensor | None:
    """Which keys each token sees: boolean, batch x 1 x queries x keys; None where all before it do."""
    windowed = local_size is not None and kv_length >= local_size
    if allow_is_causal_skip and not windowed and q_offset.aligned and q_length in (1, kv_length):
        return None
    starts = q_offset.starts.to(device)[:, None, None, None]
    queries = starts + torch.arange(q_length, device=device)[None, None, :, None]
    keys = torch.arange(kv_length, device=device)[None, None, None, :] + kv_offset
    rows = torch.arange(batch_size, device=device)[:, None, None, None]
    head = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    return mask_function(rows, head, queries, keys).expand(batch_size, 1, q_length, kv_length)


def ragged_float_mask(*, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor:
    """The same as numbers to add to the scores, which is what models' own attention code takes."""
    mask = ragged_mask(**{**kwargs, "allow_is_causal_skip": False})
    assert mask is not None
    zero = torch.zeros((), dtype=dtype, device=mask.device)
    return torch.where(mask, zero, torch.finfo(dtype).min)


def _own_attention(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The attention written in the module's own modelling file."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(SDPA_ATTENTION, sdpa_attention_forward)
ALL_ATTENTION_FUNCTIONS.register(EAGER_ATTENTION, _own_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(SDPA_ATTENTION, ragged_mask)
ALL_MASK_ATTENTION_FUNCTIONS.register(EAGER_ATTENTION, ragged_float_mask)

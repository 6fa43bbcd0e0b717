"""The cache follows the batch: rows that begin alike copy, rows that leave are retained, gaps are closed.

Owns: what the cache holds in whose slot. Which rows run where is decided by ``batch``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sllmd.engine.batch import Batch, Chunk, Row
from sllmd.engine.cache import SlotCache
from sllmd.engine.prefix import PREFIX_TOKENS_MIN, PrefixStore, common_length


class Slots:
    """Rows of one batch in one cache."""

    def __init__(self, batch: Batch, cache: SlotCache) -> None:
        self._batch = batch
        self._cache = cache
        self._prefixes = PrefixStore(batch.cache_tokens // 4)

    def reuse(self, row: Row, slot: int) -> None:
        """Copy the longest known beginning of ``row`` into its slot; its last token is always computed."""
        if row.wants_prompt_logprobs:
            return
        tokens = row.tokens(0, row.length)
        retained, length = self._prefixes.longest(tokens)
        source, shared = self._longest_running(tokens, slot)
        if shared > length:
            row.cached = min(shared, row.length - 1)
            self._cache.copy_row(source, slot, row.cached)
        elif retained is not None:
            row.cached = min(length, row.length - 1)
            self._cache.write_row(slot, retained.row, row.cached)
        row.reused = min(row.cached, len(row.state.prompt_ids))

    def _longest_running(self, tokens: list[int], own_slot: int) -> tuple[int, int]:
        """The slot of the running row that begins most like ``tokens``, and how many tokens that is."""
        best = (0, 0)
        for slot, other in enumerate(self._batch.rows):
            if slot != own_slot and other.cached >= PREFIX_TOKENS_MIN:
                shared = common_length(other.tokens(0, other.cached), tokens)
                if shared >= PREFIX_TOKENS_MIN and shared > best[1]:
                    best = (slot, shared)
        return best

    @torch.inference_mode()
    def retire(self, row: Row) -> None:
        """Take a row out; what it had in the cache is retained for rows that begin alike."""
        if row in self._batch.rows:
            tokens = row.tokens(0, row.cached)
            slot = self._batch.rows.index(row)
            if self._prefixes.wants(tokens):
                self._prefixes.put(tokens, self._cache.read_row(slot, len(tokens)))
            self._cache.release(slot, row.cached)
        self._remove(row)

    def wipe(self, row: Row) -> None:
        """Take a running row out, and nothing of what it left in the cache is of use."""
        self._cache.wipe(self._batch.rows.index(row), row.cached)
        self._remove(row)

    def _remove(self, row: Row) -> None:
        for move in self._batch.remove(row):
            self._cache.copy_row(move.source, move.target, move.tokens)
            self._cache.release(move.source, move.tokens)


def begins_like(row: Row, wave: Sequence[Chunk]) -> bool:
    """Whether ``row`` had better wait until ``wave`` is in the cache, and copy from there."""
    if row.started:
        return False
    tokens = row.tokens(0, row.length)
    return any(common_length(tokens, chunk.row.tokens(0, chunk.stop)) >= PREFIX_TOKENS_MIN for chunk in wave)

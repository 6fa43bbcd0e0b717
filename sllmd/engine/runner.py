"""One forward pass: rows of tokens in, logits out.

Owns: the seam between the engine and a model, and runner 1, which is any transformers decoder run as it is.
Knows nothing of generations and sampling. Every runner works on the same cache, so that the engine may
change from one to another between two steps.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sllmd.engine.cache import SlotCache
from sllmd.engine.skeleton import attends_through_interface


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive tokens of one row: ``tokens`` of them from position ``start`` of slot ``slot``."""

    slot: int
    start: int
    tokens: int

    @property
    def stop(self) -> int:
        """Position behind the last."""
        return self.start + self.tokens


class Runner(Protocol):
    """A way to run the model. ``name`` is what ``EngineStats.runner`` shows."""

    name: str

    def forward(
        self, first_slot: int, tokens: torch.Tensor, starts: Sequence[int], *, every_position: bool = False
    ) -> torch.Tensor:
        """Logits after the rows in slots ``first_slot``, ... take ``tokens`` (rows x length) at ``starts``.

        Writes the cache. Rows x vocabulary: of each row's last token; with ``every_position``
        rows x length x vocabulary. Several rows at once must have length 1.
        """

    def prefill(self, spans: Sequence[Span], tokens: torch.Tensor) -> torch.Tensor:
        """Logits after the last token of each span; ``tokens`` holds all of theirs, one behind the other."""


class TransformersRunner:
    """Runner 1: the model's own forward."""

    name = "transformers"

    def __init__(self, model: Any, cache: SlotCache) -> None:
        self._model = model
        self._cache = cache
        self._device = next(model.parameters()).device
        self._ragged = attends_through_interface(type(model))
        self._last_only = "logits_to_keep" in inspect.signature(model.forward).parameters
        head = model.get_output_embeddings()
        if head is not None:
            # torch copies the whole matrix to multiply it with a slice of a prompt: half a second. The slice
            # is one token and so calls itself contiguous; only a clone gets rid of its strides.
            head.register_forward_pre_hook(
                lambda _head, inputs: (inputs[0].clone(memory_format=torch.contiguous_format),)
            )

    def forward(
        self, first_slot: int, tokens: torch.Tensor, starts: Sequence[int], *, every_position: bool = False
    ) -> torch.Tensor:
        """See ``Runner``. Models that cannot mask rows of different lengths run them one by one."""
        if not self._ragged and len(starts) > 1:
            singles = zip(torch.split(tokens, 1), starts, strict=True)
            return torch.cat(
                [
                    self.forward(first_slot + i, row, [start], every_position=every_position)
                    for i, (row, start) in enumerate(singles)
                ]
            )
        length = tokens.shape[1]
        self._cache.begin(first_slot, starts, length)
        positions = torch.tensor(list(starts))[:, None] + torch.arange(length)[None, :]
        options = {} if every_position or not self._last_only else {"logits_to_keep": 1}
        output = self._model(
            input_ids=tokens.to(self._device),
            position_ids=positions.to(self._device),
            past_key_values=self._cache,
            use_cache=True,
            **options,
        )
        logits: torch.Tensor = output.logits
        return logits if every_position else logits[:, -1]

    def prefill(self, spans: Sequence[Span], tokens: torch.Tensor) -> torch.Tensor:
        """See ``Runner``. One after the other: models know no ragged prompts."""
        parts = torch.split(tokens, [span.tokens for span in spans])
        return torch.cat(
            [
                self.forward(span.slot, part[None], [span.start])
                for span, part in zip(spans, parts, strict=True)
            ]
        )

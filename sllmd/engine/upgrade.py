"""From the safe forward to the fast one, while tokens flow.

Owns: the proof that the fused forward equals transformers' own, and the order in which it takes over. Knows
nothing of rows: it borrows one slot that no row uses. A piece takes about as long as one token, so an engine
that runs pieces between its steps never lets a stream wait long.

1. Both forwards run the same short prompt and one token after it; their logits must agree.
2. The fused forward takes over.
3. If memory allows, a thread lays out a second set of weights for oneDNN; steps go on meanwhile.
4. The proof is repeated on those weights, and they take over.

A failed proof leaves what was proven before in charge, and says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import structlog
import torch

from sllmd.engine.cache import SlotCache
from sllmd.engine.fused import FusedRunner, is_fusible
from sllmd.engine.runner import Runner, TransformersRunner

_log = structlog.get_logger(__name__)

PROBE_TOKENS = 8
"""Length of the prompt that both forwards are compared on."""
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.02}
"""Allowed difference of logits relative to their spread. Rounding alone gives 2e-7 in float32 and 0.03 to
0.06 in bfloat16 (where transformers is as far from its own float32); a wrong forward gives about 1."""


class Upgrade:
    """The take-over in pieces. ``runner`` is always the best that is proven."""

    def __init__(
        self,
        model: Any,
        reference: TransformersRunner,
        *,
        cache: SlotCache,
        slot: int,
        free_bytes: int,
        enabled: bool,
    ) -> None:
        self.runner: Runner = reference
        self._model = model
        self._reference = reference
        self._cache = cache
        self._slot = slot
        self._free_bytes = free_bytes
        self.wake: Callable[[], None] = lambda: None
        """Called from the packing thread when ``ready`` is true again."""
        self._packing = False
        self._pieces: Iterator[None] | None = self._run() if enabled and is_fusible(model) else None

    @property
    def ready(self) -> bool:
        """Whether ``advance`` would do something now."""
        return self._pieces is not None and not self._packing

    def advance(self) -> None:
        """Do one piece. A forward that breaks is a failed proof."""
        try:
            if self._pieces is not None and next(self._pieces, StopIteration) is StopIteration:
                self._pieces = None
        except RuntimeError as error:
            _log.warning("fast forward not used", model=type(self._model).__name__, error=str(error))
            self._pieces = None

    def _run(self) -> Iterator[None]:
        expected: list[torch.Tensor] = []
        for logits in self._probe(self._reference):
            expected.append(logits)
            yield
        fused = FusedRunner(self._model, self._cache)
        agrees = yield from self._agrees(fused, expected)
        if not agrees:
            return
        self.runner = fused
        if not self._may_pack():
            return
        prepacked = FusedRunner(self._model, self._cache)
        # Not a daemon: an interpreter that ends while such a thread is inside torch aborts.
        packer = threading.Thread(target=self._pack, args=(prepacked,), name="prepack")
        self._packing = True
        packer.start()
        yield
        packer.join()
        if prepacked.name != "prepacked":
            _log.warning("prepacking failed", model=type(self._model).__name__)
            return
        agrees = yield from self._agrees(prepacked, expected)
        if agrees:
            self.runner = prepacked

    def _pack(self, runner: FusedRunner) -> None:
        try:
            with torch.inference_mode():
                runner.pack()
        finally:
            self._packing = False
            self.wake()

    def _probe(self, runner: Runner) -> Iterator[torch.Tensor]:
        """Logits of a short prompt at every position, then of one token more."""
        vocabulary = self._model.get_input_embeddings().num_embeddings
        ids = [(7919 * (i + 1)) % vocabulary for i in range(PROBE_TOKENS + 1)]
        prompt, last = torch.tensor([ids[:-1]]), torch.tensor([ids[-1:]])
        yield runner.forward(self._slot, prompt, [0], every_position=True)[0]
        yield runner.forward(self._slot, last, [PROBE_TOKENS])

    def _agrees(self, runner: Runner, expected: list[torch.Tensor]) -> Generator[None, None, bool]:
        """Whether ``runner`` gives the ``expected`` logits; a generator that returns it."""
        for wanted, given in zip(expected, self._probe(runner), strict=True):
            difference = relative_difference(wanted, given)
            if not difference <= _TOLERANCE.get(wanted.dtype, 0.0):
                _log.warning(
                    "fast forward not used",
                    runner=runner.name,
                    model=type(self._model).__name__,
                    difference=difference,
                )
                return False
            yield
        return True

    def _may_pack(self) -> bool:
        """Prepacking needs a CPU, a type that oneDNN computes in, and memory for a copy of the weights."""
        parameter = self._model.lm_head.weight
        size = sum(p.numel() * p.element_size() for p in self._model.parameters())
        return parameter.device.type == "cpu" and _packs(parameter.dtype) and 2 * size < self._free_bytes


def relative_difference(wanted: torch.Tensor, given: torch.Tensor) -> float:
    """Root-mean-square difference over the spread of the wanted values; not a number if either holds one."""
    wanted, given = wanted.float(), given.float()
    return float((wanted - given).square().mean().sqrt() / wanted.std())


def _packs(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32

"""The next token of every row, from logits.

Owns: penalties, filters, the draw, log probabilities. Knows nothing of caches or models.
A draw is the largest of logits / temperature + Gumbel noise among the tokens that the filters leave. It
carries no generator state: seed and position decide on the noise (``noise``), so neither batch order nor a
change of place changes a generation. And logits that differ by rounding draw the same token, unless the best
two are as close as that; a draw by cumulated probability is not so, for every token's rounding moves the
borders of all behind it.

Order of the rules: bias, repetition / frequency / presence penalties, temperature, min_p, top_k, top_p.
Log probabilities are those of the model, before any of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from sllmd.engine.noise import gumbel_window
from sllmd.engine.protocol import GenerationState, Sampling, TokenLogprob

GREEDY_TEMPERATURE_MAX = 1e-4
"""Below this a draw is a choice of the largest, and dividing by it would overflow."""
_TOP_FIRST = 512
"""Candidates looked at before the whole vocabulary is sorted; nearly always they hold ``top_p``."""


def sample(
    logits: torch.Tensor, rows: Sequence[GenerationState]
) -> tuple[list[int | None], list[TokenLogprob | None]]:
    """One token for each row of ``logits`` (rows x vocabulary), and its log probability where asked for.

    No token for a row whose largest logit is no finite number.
    """
    nothing: list[TokenLogprob | None] = [None] * len(rows)
    if all(_is_plain_greedy(row.sampling) for row in rows):
        return _argmax(logits), nothing
    scores = logits.float()
    adjusted = scores
    if any(_is_adjusted(row.sampling) for row in rows):
        adjusted = scores.clone()
        for index, row in enumerate(rows):
            _adjust(adjusted[index], row)
    if any(_is_drawn(row.sampling) for row in rows):
        adjusted = _perturbed(adjusted, rows)
    tokens = _argmax(adjusted)
    return tokens, [
        None
        if row.sampling.logprobs is None or token is None
        else token_logprob(scores[i], token, row.sampling.logprobs)
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True))
    ]


def token_logprob(scores: torch.Tensor, token: int, top: int) -> TokenLogprob:
    """Log probability of ``token`` under ``scores`` and of the ``top`` most likely ones."""
    logprobs = scores.float().log_softmax(dim=-1)
    best: tuple[tuple[int, float], ...] = ()
    if top:
        values, ids = logprobs.topk(min(top, logprobs.numel()))
        best = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), best)


def are_finite(logits: torch.Tensor) -> list[bool]:
    """Whether each row's largest logit is a finite number; one NaN makes it one."""
    return logits.amax(dim=-1).isfinite().tolist()


def _argmax(logits: torch.Tensor) -> list[int | None]:
    """The first largest of each row; None where it is no finite number.

    torch finds a row's maximum four times as fast (in bfloat16 twenty times) as its place: so find the
    first block that holds the maximum, then the place in it.
    """
    rows, size = logits.shape
    block = math.gcd(size, 256)
    if block < 32 or logits.device.type != "cpu":
        largest, found = logits.float().max(dim=-1)
        return _where_finite(largest, found)
    blocks = logits.view(rows, -1, block)
    largest, first = blocks.amax(dim=-1).float().max(dim=-1)
    inside = blocks[torch.arange(rows), first].float().argmax(dim=-1)
    return _where_finite(largest, first * block + inside)


def _where_finite(largest: torch.Tensor, found: torch.Tensor) -> list[int | None]:
    finite = largest.isfinite().tolist()
    return [token if good else None for token, good in zip(found.tolist(), finite, strict=True)]


def _is_adjusted(sampling: Sampling) -> bool:
    return bool(
        sampling.logit_bias
        or sampling.frequency_penalty
        or sampling.presence_penalty
        or sampling.repetition_penalty != 1.0
    )


def _is_plain_greedy(sampling: Sampling) -> bool:
    return not _is_drawn(sampling) and sampling.logprobs is None and not _is_adjusted(sampling)


def _is_drawn(sampling: Sampling) -> bool:
    return sampling.temperature > GREEDY_TEMPERATURE_MAX


def _is_filtered(sampling: Sampling) -> bool:
    return sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0


def _adjust(scores: torch.Tensor, row: GenerationState) -> None:
    """Bias and penalties of one row, in place; counts come from its token ids, not from a running state."""
    sampling = row.sampling
    if sampling.logit_bias:
        ids, biases = zip(*sampling.logit_bias, strict=True)
        scores.index_add_(0, _ids(ids, scores), torch.tensor(biases, device=scores.device))
    if sampling.repetition_penalty != 1.0:
        seen = _ids(sorted({*row.prompt_ids, *row.output_ids}), scores)
        old = scores[seen]
        penalty = sampling.repetition_penalty
        scores[seen] = torch.where(old > 0, old / penalty, old * penalty)
    if row.output_ids and (sampling.frequency_penalty or sampling.presence_penalty):
        counts = Counter(row.output_ids)
        often = torch.tensor(list(counts.values()), dtype=scores.dtype, device=scores.device)
        scores[_ids(list(counts), scores)] -= often * sampling.frequency_penalty + sampling.presence_penalty


def _ids(ids: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.long, device=like.device)


def _perturbed(scores: torch.Tensor, rows: Sequence[GenerationState]) -> torch.Tensor:
    """Scores of which every row's largest is its token: with noise where it is drawn, else as they are."""
    perturbed = torch.empty_like(scores)
    for row, plain, into in zip(rows, scores, perturbed, strict=True):
        if _is_drawn(row.sampling):
            _perturb(plain, row, into)
        else:
            into.copy_(plain)
    return perturbed


def _perturb(scores: torch.Tensor, row: GenerationState, into: torch.Tensor) -> None:
    """Noise on one row's scores; what its filters take out becomes -inf."""
    temperature = row.sampling.temperature
    noise = gumbel_window(row.sampling.seed, len(row.output_ids), scores.numel(), scores.device)
    if not _is_filtered(row.sampling):
        torch.add(scores, noise, alpha=temperature, out=into)
        return
    ids = _left_by_filters(scores / temperature, row.sampling)
    into.fill_(-math.inf)
    into[ids] = torch.add(scores[ids], noise[ids], alpha=temperature)


def _left_by_filters(scaled: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The tokens that ``top_k``, ``top_p`` and ``min_p`` leave, best first; none if a score is no number."""
    normaliser = scaled.logsumexp(dim=-1)
    size = scaled.numel()
    wanted = min(sampling.top_k or _TOP_FIRST, size)
    values, ids = scaled.topk(wanted)
    probabilities = (values - normaliser).exp()
    incomplete = not sampling.top_k and wanted < size and _needs_more(probabilities, sampling)
    if incomplete:
        values, ids = scaled.sort(descending=True, stable=True)
        probabilities = (values - normaliser).exp()
    if sampling.min_p > 0:
        probabilities = torch.where(
            probabilities >= sampling.min_p * probabilities[0], probabilities, probabilities.new_zeros(())
        )
    if sampling.top_p < 1:
        total = probabilities.sum() if sampling.top_k or sampling.min_p > 0 else 1.0
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = torch.where(
            before < sampling.top_p * total, probabilities, probabilities.new_zeros(())
        )
    return ids[probabilities > 0]


def _needs_more(probabilities: torch.Tensor, sampling: Sampling) -> bool:
    """Whether tokens beyond these first candidates could pass the filters."""
    if sampling.min_p > 0 and float(probabilities[-1]) < sampling.min_p * float(probabilities[0]):
        return False
    return sampling.min_p > 0 or float(probabilities.sum()) < sampling.top_p

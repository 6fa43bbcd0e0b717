"""From a request's fields to ``Sampling``: defaults, seeds, room. Pure, ``drawn_seed`` apart."""

from __future__ import annotations

import random
from collections.abc import Sequence

from sllmd.api.openai import ChatRequest, CompletionRequest
from sllmd.core.errors import ContextLengthExceeded, InvalidRequest
from sllmd.engine.protocol import Sampling
from sllmd.text.tokenizer import Tokenizer

SEED_BITS = 63
"""Seeds are kept to what every signed 64-bit integer on the way can hold."""
_SEED_STRIDE = 0x9E3779B97F4A7C15
"""Odd, with well mixed bits: choices of one request get seeds far apart."""
_TOP_P_MIN = 1e-6
"""``top_p: 0`` asks for the most likely token only."""


def drawn_seed(request: CompletionRequest | ChatRequest) -> int:
    """The request's seed, or one drawn now so that the answer can be told again and moved."""
    seed = request.seed if request.seed is not None else random.getrandbits(SEED_BITS)
    return seed % (1 << SEED_BITS)


def choice_seed(seed: int, choice: int) -> int:
    """The seed of the ``choice``-th of n choices; the first has the request's own."""
    return (seed + choice * _SEED_STRIDE) % (1 << SEED_BITS)


def completion_sampling(
    request: CompletionRequest, tokenizer: Tokenizer, *, seed: int, max_tokens: int
) -> Sampling:
    """How one choice of a completion is sampled."""
    prompt_logprobs = request.logprobs if request.echo else None
    return _sampling(request, tokenizer, seed, max_tokens, request.logprobs, prompt_logprobs)


def chat_sampling(request: ChatRequest, tokenizer: Tokenizer, *, seed: int, max_tokens: int) -> Sampling:
    """How one choice of a chat completion is sampled."""
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    return _sampling(request, tokenizer, seed, max_tokens, logprobs, None)


def _sampling(
    request: CompletionRequest | ChatRequest,
    tokenizer: Tokenizer,
    seed: int,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> Sampling:
    check_token_ids(request.logit_bias, tokenizer, "logit_bias")
    check_token_ids(request.stop_token_ids, tokenizer, "stop_token_ids")
    return Sampling(
        seed=seed,
        max_tokens=max_tokens,
        temperature=request.temperature,
        top_p=max(request.top_p, _TOP_P_MIN),
        top_k=min(max(request.top_k, 0), tokenizer.vocabulary_size),
        min_p=request.min_p,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=tuple(request.logit_bias.items()),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        stop_token_ids=(*(() if request.ignore_eos else tokenizer.stop_token_ids), *request.stop_token_ids),
    )


def check_token_ids(ids: Sequence[int] | dict[int, float], tokenizer: Tokenizer, param: str) -> None:
    """Raise InvalidRequest for an id outside of the vocabulary."""
    if ids and (max(ids) >= tokenizer.vocabulary_size or min(ids) < 0):
        wrong = next(i for i in ids if not 0 <= i < tokenizer.vocabulary_size)
        last = tokenizer.vocabulary_size - 1
        raise InvalidRequest(
            f"`{param}` holds token id {wrong}, and this model's go from 0 to {last}.", param=param
        )


def room_for(
    prompt_tokens: int, wanted: int | None, default: int | None, *, context_tokens: int, param: str
) -> int:
    """How many tokens may be generated: ``wanted``, or ``default`` as far as there is room, or all the room.

    Raises ContextLengthExceeded.
    """
    room = context_tokens - prompt_tokens
    completion = wanted if wanted is not None else min(default or room, room)
    if completion > room or (wanted is None and room < 1):
        raise context_overflow(context_tokens, prompt_tokens, max(completion, default or 1), param)
    return completion


def context_overflow(
    context_tokens: int, prompt_tokens: int, completion_tokens: int, param: str, *, at_least: bool = False
) -> ContextLengthExceeded:
    """In OpenAI's words: clients look for "maximum context length is N tokens"."""
    total = prompt_tokens + completion_tokens
    least = "at least " if at_least else ""
    return ContextLengthExceeded(
        f"This model's maximum context length is {context_tokens} tokens. However, you requested"
        f" {least}{total} tokens ({prompt_tokens} in the {param}; {completion_tokens} for the completion)."
        " Please reduce your prompt; or completion length.",
        param=param,
    )

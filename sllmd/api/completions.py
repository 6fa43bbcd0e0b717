"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from sllmd.api.choices import Choices
from sllmd.api.chunks import Account, CompletionChunks
from sllmd.api.forms import Form
from sllmd.api.logprobs import LegacyLogprobs, joined, legacy_prompt
from sllmd.api.openai import CompletionRequest
from sllmd.api.parsing import ignored_fields, parse_completion
from sllmd.api.prompts import encode_prompt
from sllmd.api.resuming import begin_kept, send_kept
from sllmd.api.rooms import EXCHANGE, ROOMS, read_body
from sllmd.api.sampling import choice_seed, completion_sampling, drawn_seed, room_for
from sllmd.api.stream import collect_choices, ignored_header, new_shape, stream_choices, whole_answer
from sllmd.roles.generation import Delta, GenerationRequest, TextLogprob
from sllmd.roles.status import ModelCard
from sllmd.text.stream import TextStream
from sllmd.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """A prompt that its completion repeats."""

    text: str
    ids: tuple[int, ...]
    tokenizer: Tokenizer

    def logprobs(self, generation: Account) -> dict[str, Any]:
        """Legacy form of the prompt's tokens; there once the first delta is."""
        known = generation.prompt_logprobs or ()
        logprobs: list[TextLogprob | None] = [*known, *([None] * (len(self.ids) - len(known)))]
        texts = [self.tokenizer.token_text(token_id) for token_id in self.ids]
        return legacy_prompt(texts, self._offsets(), logprobs)

    def _offsets(self) -> list[int]:
        """Where in the text each token begins; control tokens take no room in it."""
        stream = TextStream(self.tokenizer)
        offsets, position = [], 0
        for token_id in self.ids:
            offsets.append(position)
            position += len(stream.push(token_id))
        return offsets


async def create_completion(request: web.Request) -> web.StreamResponse:
    """Handler. Choice ``i * n + j`` is the j-th text for prompt i."""
    rooms, exchange = request.app[ROOMS], request[EXCHANGE]
    wanted = await read_body(request, parse_completion)
    card = await rooms.router.prepare(wanted.model)
    exchange.model = card.name
    tokenizer = await rooms.router.tokenizer(wanted.model)
    prompts = [
        await encode_prompt(
            tokenizer,
            prompt,
            special=wanted.add_special_tokens,
            context_tokens=card.context_tokens,
        )
        for prompt in (wanted.prompt if wanted.prompt is not None else [""])
    ]
    requests = _generation_requests(request, wanted, card, tokenizer, prompts)
    echoes = _echoes(wanted, tokenizer, prompts)
    choices = Choices(rooms.router, requests)
    counts_prompt = [index % wanted.n == 0 for index in range(len(requests))]
    shape = new_shape(wanted, "cmpl")
    headers = ignored_header(ignored_fields(wanted))
    with_logprobs = wanted.logprobs is not None
    if wanted.stream:
        texts = tuple(None if echo is None else echo.text for echo in echoes)
        form = Form("completion", shape, with_logprobs, tuple(counts_prompt), texts)
        kept = begin_kept(request, choices, form, requests)
        if kept is not None:
            return await send_kept(request, kept, headers)
        chunks = CompletionChunks(shape, logprobs=with_logprobs, echoes=echoes)
        return await stream_choices(request, choices, chunks, counts_prompt=counts_prompt, headers=headers)
    deltas = await collect_choices(request, choices)
    answers = [
        _choice(index, deltas[index], echo, choices.generations[index], with_logprobs)
        for index, echo in enumerate(echoes)
    ]
    return whole_answer(
        request, shape, "text_completion", choices, answers, counts_prompt=counts_prompt, headers=headers
    )


def _generation_requests(
    request: web.Request,
    wanted: CompletionRequest,
    card: ModelCard,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[int, ...]],
) -> list[GenerationRequest]:
    default = request.app[ROOMS].settings.default_max_tokens
    seed = drawn_seed(wanted)
    requests = []
    for prompt_ids in prompts:
        max_tokens = room_for(
            len(prompt_ids), wanted.max_tokens, default, context_tokens=card.context_tokens, param="prompt"
        )
        for choice in range(wanted.n):
            sampling = completion_sampling(
                wanted, tokenizer, seed=choice_seed(seed, choice), max_tokens=max_tokens
            )
            requests.append(
                GenerationRequest(
                    request_id=request[EXCHANGE].request_id,
                    model=card.name,
                    prompt_ids=prompt_ids,
                    digest=card.digest,
                    sampling=sampling,
                    stop=tuple(wanted.stop),
                    keep_alive_seconds=wanted.keep_alive,
                    skip_special_tokens=wanted.skip_special_tokens,
                    key=request[EXCHANGE].key_id or "",
                )
            )
    return requests


def _echoes(
    wanted: CompletionRequest, tokenizer: Tokenizer, prompts: Sequence[tuple[int, ...]]
) -> list[EchoedPrompt | None]:
    """One per choice; None where nothing is echoed."""
    if not wanted.echo:
        return [None] * (len(prompts) * wanted.n)
    echoes = []
    for prompt, ids in zip(wanted.prompt or [""], prompts, strict=True):
        text = prompt if isinstance(prompt, str) else tokenizer.decode(ids)
        echoes += [EchoedPrompt(text, ids, tokenizer)] * wanted.n
    return [*echoes]


def _choice(
    index: int,
    deltas: Sequence[Delta],
    echo: EchoedPrompt | None,
    generation: Account,
    with_logprobs: bool,
) -> dict[str, Any]:
    echoed = echo.text if echo else ""
    logprobs = None
    if with_logprobs:
        output = LegacyLogprobs(len(echoed)).of_output([token for delta in deltas for token in delta.tokens])
        logprobs = joined([echo.logprobs(generation), output]) if echo else output
    return {
        "text": echoed + "".join(delta.text for delta in deltas),
        "index": index,
        "logprobs": logprobs,
        "finish_reason": deltas[-1].finish_reason,
    }
